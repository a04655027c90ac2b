package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// NodeStatus is one node for scripts: where everything is, and what runs.
type NodeStatus struct {
	Name     string `json:"name"`
	Group    int    `json:"group"`
	Address  string `json:"address"`
	Port     int    `json:"port"` // of PostgreSQL
	Postgres string `json:"postgres"`
	Peer     string `json:"peer"`
	API      string `json:"api"`
	Proxy    Proxy  `json:"proxy"` // where clients reach the formation through this node
	Dir      string `json:"dir"`
	StateDir string `json:"state_dir"`
	DataDir  string `json:"data_dir"`
	Config   string `json:"config"`
	Log      string `json:"log"`
	Pids     Pids   `json:"pids"`
	Role     string `json:"role,omitempty"`
	State    string `json:"state,omitempty"`
}

// Proxy are a node's addresses for clients, by the server they lead to.
type Proxy struct {
	Coordinator string `json:"coordinator"`
	Worker      string `json:"worker"`
	Standby     string `json:"standby"`
}

// Status describes all nodes. Roles and states are missing when no node answers.
func (d *Demo) Status(ctx context.Context) ([]NodeStatus, error) {
	if !d.Exists() {
		return nil, fmt.Errorf("there is no demo in %s: start one with 'matriarch demo up'", d.cfg.Dir)
	}
	all, err := processes()
	if err != nil {
		return nil, err
	}
	roles := map[string][2]string{}
	if _, f, err := d.formation(ctx); err == nil {
		for _, m := range f.Members {
			roles[m.Name] = [2]string{m.Role, m.State}
		}
	}
	out := make([]NodeStatus, 0, 7)
	for _, n := range d.Nodes() {
		out = append(out, NodeStatus{
			Name: n.Name, Group: n.Group, Address: n.IP, Port: pgPort, Postgres: n.postgres(), Peer: n.peer(), API: n.api(), Proxy: Proxy{n.at(proxyCoordinator), n.at(proxyWorker), n.at(proxyStandby)}, Dir: n.dir, StateDir: n.stateDir(),
			DataDir: n.dataDir(), Config: n.configFile(), Log: n.logFile(), Pids: n.pids(all), Role: roles[n.Name][0], State: roles[n.Name][1],
		})
	}
	return out, nil
}

// ErrExists says that a demo would begin where there is one.
var ErrExists = errors.New("there is a demo already")

// Up starts all nodes and waits until the formation is healthy. With keep, nodes made before are started again.
func (d *Demo) Up(ctx context.Context, keep bool) (time.Duration, error) {
	began := time.Now()
	nodes := d.Nodes()
	if d.Exists() && nodes[0].made() && !keep {
		return 0, fmt.Errorf("%w in %s: end it with 'matriarch demo down', or start it again with --keep", ErrExists, d.cfg.Dir)
	}
	if err := d.prepare(); err != nil {
		return 0, err
	}
	if nodes[0].made() {
		for _, n := range nodes {
			if err := d.Start(n.Name); err != nil {
				return 0, err
			}
		}
		return d.waitHealthy(ctx, began)
	}
	token, err := d.bootstrap(ctx, nodes[0])
	if err != nil {
		return 0, err
	}
	if err := d.run(nodes[0]); err != nil {
		return 0, err
	}
	if err := d.waitAnswer(ctx, began); err != nil {
		return 0, err
	}
	joins, jctx := errgroup.WithContext(ctx)
	for _, n := range nodes[1:] {
		joins.Go(func() error {
			if err := d.join(jctx, n, nodes[0].peer(), token); err != nil {
				return err
			}
			return d.run(n)
		})
	}
	if err := joins.Wait(); err != nil {
		return 0, err
	}
	return d.waitHealthy(ctx, began)
}

// Start starts a node's agent unless it runs.
func (d *Demo) Start(name string) error {
	n, err := d.Node(name)
	if err != nil {
		return err
	}
	if !n.made() {
		return fmt.Errorf("start %s: there is no demo in %s: 'matriarch demo up' makes it", name, d.cfg.Dir)
	}
	all, err := processes()
	if err != nil {
		return err
	}
	if n.pids(all).Agent != 0 {
		return nil
	}
	return d.run(n)
}

// stopWait is how long a node may take to stop PostgreSQL in good order; downWait when all stop at once, and the last ones find nobody left
// to give their leases back to.
const (
	stopWait = 60 * time.Second
	downWait = 15 * time.Second
)

// Stop ends a node in good order: PostgreSQL, then everything else.
func (d *Demo) Stop(ctx context.Context, name string) error {
	n, err := d.Node(name)
	if err != nil {
		return err
	}
	return d.stop(ctx, n, stopWait)
}

func (d *Demo) stop(ctx context.Context, n Node, wait time.Duration) error {
	all, err := processes()
	if err != nil {
		return err
	}
	ids := n.pids(all)
	if ids.Agent == 0 {
		if len(n.everything(all)) == 0 {
			return nil
		}
		return fmt.Errorf("stop %s: its agent does not run, so nobody stops its PostgreSQL in good order: start it first, or kill the node", n.Name)
	}
	if err := signal(ids.Agent, syscall.SIGINT); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err = every(ctx, 50*time.Millisecond, func() (bool, error) {
		all, err := processes()
		return err == nil && len(n.everything(all)) == 0, err
	})
	if err != nil {
		return fmt.Errorf("stop %s: it has not ended after %s: see %s", n.Name, wait, n.logFile())
	}
	return nil
}

// Kill kills by SIGKILL: everything of a node in one go, or only its agent, sentinel or postmaster.
func (d *Demo) Kill(name, only string) error {
	n, err := d.Node(name)
	if err != nil {
		return err
	}
	if only == "" {
		return n.killAll()
	}
	all, err := processes()
	if err != nil {
		return err
	}
	ids := n.pids(all)
	pid, known := map[string]int{"agent": ids.Agent, "sentinel": ids.Sentinel, "postmaster": ids.Postmaster}[only]
	if !known {
		return fmt.Errorf("kill %s: --only %q must be agent, sentinel or postmaster", name, only)
	}
	if pid == 0 {
		return fmt.Errorf("kill %s: its %s does not run", name, only)
	}
	return signal(pid, syscall.SIGKILL)
}

// Down ends all nodes. Without keep it kills them and removes the directory; with keep it stops them in good order first.
func (d *Demo) Down(ctx context.Context, keep bool) error {
	if !d.Exists() {
		return fmt.Errorf("there is no demo in %s", d.cfg.Dir)
	}
	if keep {
		stops, sctx := errgroup.WithContext(ctx)
		for _, n := range d.Nodes() {
			stops.Go(func() error { return d.putDown(sctx, n) })
		}
		return stops.Wait()
	}
	var errs []error
	for _, n := range d.Nodes() {
		errs = append(errs, n.killAll())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(d.cfg.Dir); err != nil {
		return fmt.Errorf("remove the demo: %w", err)
	}
	return nil
}

// putDown stops a node in good order, and ends by force what waits for others after PostgreSQL has stopped.
func (d *Demo) putDown(ctx context.Context, n Node) error {
	err := d.stop(ctx, n, downWait)
	if err == nil {
		return nil
	}
	all, perr := processes()
	if perr != nil {
		return perr
	}
	if n.pids(all).Postmaster != 0 {
		return err
	}
	return n.killAll()
}

// every asks again and again until the answer is yes, an error, or ctx ends.
func every(ctx context.Context, d time.Duration, yes func() (bool, error)) error {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		if ok, err := yes(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}
