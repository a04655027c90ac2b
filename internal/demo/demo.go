package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"matriarch/internal/admin"
	"matriarch/internal/config"
)

// Ports of every node; the addresses differ.
const (
	peerPort                                    = 7400
	pgPort                                      = 6432
	proxyCoordinator, proxyWorker, proxyStandby = 6433, 6434, 6435
	apiPort                                     = 8008
	database                                    = "app"
	mark                                        = ".matriarch-demo"
)

// Config is what a demo is made of.
type Config struct {
	Dir   string // everything of the demo; made by Up
	Exe   string // this very binary
	PGBin string // of PostgreSQL's programs; empty: the distribution's
	Out   io.Writer
	List  func(io.Writer, admin.Formation) // prints the table
}

// Demo is a formation on this machine.
type Demo struct{ cfg Config }

// New checks nothing and starts nothing.
func New(cfg Config) *Demo { return &Demo{cfg} }

// Node is one of the seven.
type Node struct {
	Name  string
	Group int
	IP    string
	dir   string
}

// Nodes are the same in every demo.
func (d *Demo) Nodes() []Node {
	var out []Node
	for group, g := range []struct {
		name  string
		count int
	}{{"coord", 3}, {"work1", 2}, {"work2", 2}} {
		for i := 1; i <= g.count; i++ {
			name := fmt.Sprintf("%s-%d", g.name, i)
			out = append(out, Node{name, group, fmt.Sprintf("127.0.77.%d", (group+1)*10+i), filepath.Join(d.cfg.Dir, name)})
		}
	}
	return out
}

// Node finds one by name.
func (d *Demo) Node(name string) (Node, error) {
	names := make([]string, 0, 7)
	for _, n := range d.Nodes() {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return Node{}, fmt.Errorf("there is no node %q in the demo: nodes are %s", name, strings.Join(names, ", "))
}

func (n Node) at(port int) string { return fmt.Sprintf("%s:%d", n.IP, port) }
func (n Node) peer() string       { return n.at(peerPort) }
func (n Node) postgres() string   { return n.at(pgPort) }
func (n Node) api() string        { return n.at(apiPort) }
func (n Node) configFile() string { return filepath.Join(n.dir, "matriarch.yml") }
func (n Node) logFile() string    { return filepath.Join(n.dir, "matriarch.log") }
func (n Node) stateDir() string   { return filepath.Join(n.dir, "state") }
func (n Node) dataDir() string    { return filepath.Join(n.dir, "pgdata") }
func (n Node) socket() string     { return filepath.Join(n.stateDir(), "sentinel.sock") }
func (n Node) made() bool         { _, err := os.Stat(n.configFile()); return err == nil }

// flags are what an operator would give to bootstrap or join on this host.
func (d *Demo) flags(n Node) []string {
	f := []string{
		"--config", n.configFile(), "--output", "json", "--name", n.Name, "--group", fmt.Sprint(n.Group), "--listen", n.peer(), "--api", n.api(), "--pg-listen", n.postgres(),
		"--proxy-coordinator", n.at(proxyCoordinator), "--proxy-worker", n.at(proxyWorker), "--proxy-standby", n.at(proxyStandby),
		"--state-dir", n.stateDir(), "--data-dir", n.dataDir(), "--zone", fmt.Sprintf("zone%s", n.Name[len(n.Name)-1:]),
	}
	if d.cfg.PGBin != "" {
		f = append(f, "--pg-bin", d.cfg.PGBin)
	}
	return f
}

// command runs a verb of the own binary to its end and returns what it printed.
func (d *Demo) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, d.cfg.Exe, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("matriarch %s: %w: %s", args[0], err, strings.TrimSpace(strings.TrimPrefix(stderr.String(), "matriarch: ")))
	}
	return out, nil
}

// Exists reports whether the directory holds a demo.
func (d *Demo) Exists() bool {
	_, err := os.Stat(filepath.Join(d.cfg.Dir, mark))
	return err == nil
}

// prepare makes the directory, or refuses one that is not the demo's.
func (d *Demo) prepare() error {
	entries, err := os.ReadDir(d.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("demo directory: %w", err)
	}
	if len(entries) > 0 && !d.Exists() {
		return fmt.Errorf("demo directory %s is not empty and not of a demo: name another with --dir", d.cfg.Dir)
	}
	for _, n := range d.Nodes() {
		if err := os.MkdirAll(n.dir, 0o755); err != nil { //nolint:gosec // PostgreSQL's own user passes through it
			return fmt.Errorf("demo directory: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.cfg.Dir, mark), nil, 0o600); err != nil {
		return fmt.Errorf("demo directory: %w", err)
	}
	return nil
}

// run starts a node's agent so that it outlives us.
func (d *Demo) run(n Node) error {
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) //nolint:gosec // a log of a demo
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(d.cfg.Exe, "run", "--config", n.configFile()) //nolint:noctx // it outlives the caller
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	go func() { _ = cmd.Wait() }() // no zombie while we live; how it ended stands in its log
	return nil
}

// bootstrap makes the first node and returns the token for the others.
func (d *Demo) bootstrap(ctx context.Context, n Node) (string, error) {
	out, err := d.command(ctx, append([]string{"bootstrap", "--database", database}, d.flags(n)...)...)
	if err != nil {
		return "", err
	}
	var made struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(out, &made); err != nil || made.Token == "" {
		return "", fmt.Errorf("bootstrap %s: no token in its answer %q", n.Name, out)
	}
	return made.Token, nil
}

func (d *Demo) join(ctx context.Context, n Node, at, token string) error {
	return again(ctx, func(ctx context.Context) error {
		_, err := d.command(ctx, append([]string{"join", at, "--token", token}, d.flags(n)...)...)
		return err
	})
}

// client opens a way to the formation with the certificate of the first node that was made.
func (d *Demo) client() (*admin.Client, error) {
	for _, n := range d.Nodes() {
		if !n.made() {
			continue
		}
		cfg, err := config.Load(n.configFile())
		if err != nil {
			return nil, err
		}
		for _, other := range d.Nodes() {
			cfg.Peers = append(cfg.Peers, other.peer())
		}
		return admin.Open(cfg)
	}
	return nil, errors.New("no node of the demo was made: start it with 'matriarch demo up'")
}

// formation asks the nodes.
func (d *Demo) formation(ctx context.Context) (admin.Status, admin.Formation, error) {
	c, err := d.client()
	if err != nil {
		return admin.Status{}, admin.Formation{}, err
	}
	defer c.Close()
	st, err := c.Formation(ctx)
	if err != nil {
		return st, admin.Formation{}, err
	}
	return st, admin.NewFormation(st), nil
}

// primary is the node that holds the lease of a group.
func (d *Demo) primary(ctx context.Context, group int) (n Node, err error) {
	err = again(ctx, func(ctx context.Context) error {
		_, f, err := d.formation(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(f.Groups, func(g admin.Group) bool { return int(g.ID) == group })
		if i < 0 || f.Groups[i].Primary == "" {
			return fmt.Errorf("group %d has no primary", group)
		}
		n, err = d.Node(f.Groups[i].Primary)
		return err
	})
	return n, err
}
