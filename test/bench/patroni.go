package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	patroniPassword = "bench"
	etcdMembers     = 3
)

// patroni is a formation of Debian's Patroni on three members of etcd, with the same servers and shape.
type patroni struct {
	dir, pgBin   string
	uid, gid     int
	nodes        []patroniNode
	http         *http.Client
	etcdEndpoint []string
}

type patroniNode struct {
	Name  string
	Group int
	IP    string
	dir   string
}

func (n patroniNode) config() string { return filepath.Join(n.dir, "patroni.yml") }
func (n patroniNode) data() string   { return filepath.Join(n.dir, "pgdata") }
func (n patroniNode) log() string    { return filepath.Join(n.dir, "patroni.log") }

func newPatroni(o options) (*patroni, error) {
	for _, program := range []string{"patroni", "etcd"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%s is missing: run 'test/bench/peer.sh' (apt: patroni etcd-server etcd-client)", program)
		}
	}
	if os.Getenv(insideVar) == "" {
		return nil, errors.New("the comparison with Patroni runs as root only: it needs namespaces of its own")
	}
	pg, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("patroni: %w", err)
	}
	p := &patroni{dir: filepath.Join(o.dir, "patroni"), pgBin: o.pgBin, http: &http.Client{Timeout: 2 * time.Minute}}
	p.uid, _ = strconv.Atoi(pg.Uid)
	p.gid, _ = strconv.Atoi(pg.Gid)
	for group, g := range []struct {
		name  string
		count int
	}{{"coord", 3}, {"work1", 2}, {"work2", 2}} {
		for i := 1; i <= g.count; i++ {
			name := fmt.Sprintf("%s-%d", g.name, i)
			p.nodes = append(p.nodes, patroniNode{name, group, fmt.Sprintf("127.0.78.%d", (group+1)*10+i), filepath.Join(p.dir, name)})
		}
	}
	for i := 1; i <= etcdMembers; i++ {
		p.etcdEndpoint = append(p.etcdEndpoint, fmt.Sprintf("127.0.78.%d:2379", i))
	}
	return p, nil
}

func (p *patroni) describe(ctx context.Context) (string, error) {
	version, err := exec.CommandContext(ctx, "patroni", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("patroni --version: %w", err)
	}
	etcd, err := exec.CommandContext(ctx, "etcd", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("etcd --version: %w", err)
	}
	first, _, _ := strings.Cut(string(etcd), "\n")
	return fmt.Sprintf("%s, %s (%d members); default ttl 30, loop_wait 10, retry_timeout 10; synchronous_mode on (a standby confirms every commit)", strings.TrimSpace(string(version)),
		strings.ToLower(first), etcdMembers), nil
}

// spawn starts a program as PostgreSQL's user; it ends with us at the latest.
func (p *patroni) spawn(log string, env []string, program string, args ...string) error {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	defer out.Close()
	cmd := exec.Command(program, args...) //nolint:noctx // it outlives the caller
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = p.dir, out, out, append(append(os.Environ(), "HOME="+p.dir, "USER=postgres"), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uint32(p.uid), Gid: uint32(p.gid)}}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	go func() { _ = cmd.Wait() }()
	return nil
}

func (p *patroni) up(ctx context.Context) error {
	if err := p.down(ctx); err != nil {
		return err
	}
	if err := p.prepare(); err != nil {
		return err
	}
	var members []string
	for i, e := range p.etcdEndpoint {
		members = append(members, fmt.Sprintf("etcd%d=http://%s:2380", i+1, strings.TrimSuffix(e, ":2379")))
	}
	for i, e := range p.etcdEndpoint {
		name, peer := fmt.Sprintf("etcd%d", i+1), "http://"+strings.TrimSuffix(e, ":2379")+":2380"
		err := p.spawn(filepath.Join(p.dir, name+".log"), nil, "etcd", "--name", name, "--data-dir", filepath.Join(p.dir, name),
			"--listen-client-urls", "http://"+e, "--advertise-client-urls", "http://"+e, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(members, ","), "--log-level", "warn")
		if err != nil {
			return err
		}
	}
	if err := until(ctx, "wait for etcd", wholeWait, func(ctx context.Context) error { return p.get(ctx, "http://"+p.etcdEndpoint[0]+"/health", nil) }); err != nil {
		return err
	}
	// The first of each group makes its database, so that the roles at the beginning are the same in every run.
	for _, first := range []bool{true, false} {
		for _, n := range p.nodes {
			if strings.HasSuffix(n.Name, "-1") != first {
				continue
			}
			if err := p.start(ctx, n.Name); err != nil {
				return err
			}
		}
		if err := p.waitPrimaries(ctx); err != nil {
			return err
		}
	}
	return p.whole(ctx)
}

func (p *patroni) waitPrimaries(ctx context.Context) error {
	return until(ctx, "wait for the primaries", wholeWait, func(ctx context.Context) error {
		for group := range 3 {
			if _, err := p.primary(ctx, group); err != nil {
				return err
			}
		}
		return nil
	})
}

// prepare writes the configurations.
func (p *patroni) prepare() error {
	for _, n := range p.nodes {
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return fmt.Errorf("patroni: %w", err)
		}
		var b bytes.Buffer
		err := patroniYAML.Execute(&b, map[string]any{
			"Node": n, "Data": n.data(), "Dir": n.dir, "Bin": p.pgBin, "Etcd": p.etcdEndpoint, "Database": database, "Password": patroniPassword,
		})
		if err != nil {
			return fmt.Errorf("patroni: %w", err)
		}
		if err := os.WriteFile(n.config(), b.Bytes(), 0o644); err != nil {
			return fmt.Errorf("patroni: %w", err)
		}
		if err := os.Chown(n.dir, p.uid, p.gid); err != nil {
			return fmt.Errorf("patroni: %w", err)
		}
	}
	return os.Chown(p.dir, p.uid, p.gid)
}

func (p *patroni) down(context.Context) error {
	err := killUntilGone(func(pr process) bool {
		return strings.HasPrefix(pr.cwd, p.dir) || slices.ContainsFunc(pr.args, func(a string) bool { return strings.HasPrefix(a, p.dir) })
	})
	return errors.Join(err, os.RemoveAll(p.dir))
}

func (p *patroni) hosts(group int) []string {
	var out []string
	for _, n := range p.nodes {
		if n.Group == group {
			out = append(out, n.IP+":6432")
		}
	}
	return out
}

func (p *patroni) dsn(hosts []string) (string, error) {
	return clientDSN(hosts, patroniPassword), nil
}

// patroniStatus is what a node's agent tells about it.
type patroniStatus struct {
	State       string `json:"state"`
	Role        string `json:"role"`
	Replication []struct {
		Name  string `json:"application_name"`
		State string `json:"state"`
		Sync  string `json:"sync_state"`
	} `json:"replication"`
}

func (s patroniStatus) leads() bool {
	return s.State == "running" && (s.Role == "master" || s.Role == "primary")
}

func (p *patroni) get(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := p.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if into == nil {
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, res.Status)
		}
		return nil
	}
	return json.NewDecoder(res.Body).Decode(into)
}

func (p *patroni) status(ctx context.Context, n patroniNode) (s patroniStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s, p.get(ctx, "http://"+n.IP+":8008/patroni", &s)
}

func (p *patroni) primary(ctx context.Context, group int) (string, error) {
	for _, n := range p.nodes {
		if n.Group != group {
			continue
		}
		if s, err := p.status(ctx, n); err == nil && s.leads() {
			return n.Name, nil
		}
	}
	return "", fmt.Errorf("group %d has no primary", group)
}

// switchover asks what patronictl asks; the answer comes when it is over.
func (p *patroni) switchover(ctx context.Context, group int) (switched, error) {
	name, err := p.primary(ctx, group)
	if err != nil {
		return switched{}, err
	}
	n := p.node(name)
	body := strings.NewReader(fmt.Sprintf(`{"leader": %q}`, name))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+n.IP+":8008/switchover", body)
	if err != nil {
		return switched{}, err
	}
	res, err := p.http.Do(req)
	if err != nil {
		return switched{}, fmt.Errorf("switch over: %w", err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		return switched{}, fmt.Errorf("switch over: %s: %s", res.Status, text)
	}
	return switched{Outcome: strings.TrimSpace(string(text))}, nil
}

func (p *patroni) node(name string) patroniNode {
	return p.nodes[slices.IndexFunc(p.nodes, func(n patroniNode) bool { return n.Name == name })]
}

func (p *patroni) kill(_ context.Context, name, only string) error {
	n := p.node(name)
	agent := func(pr process) bool { return slices.Contains(pr.args, n.config()) }
	server := func(pr process) bool { return pr.cwd == n.data() }
	switch only {
	case "agent":
		return killUntilGone(agent)
	case "postmaster":
		return killPostmaster(server)
	}
	return killUntilGone(func(pr process) bool { return agent(pr) || server(pr) })
}

func (p *patroni) freeze(ctx context.Context, name string, hold time.Duration) error {
	n := p.node(name)
	return freezeAll(ctx, hold, func(pr process) bool { return slices.Contains(pr.args, n.config()) })
}

// etcd is on none of the nodes that are hit.
func (p *patroni) votes(context.Context, string) (bool, error) { return true, nil }
func (p *patroni) lead(context.Context, string) error          { return nil }

func (p *patroni) start(_ context.Context, name string) error {
	n := p.node(name)
	return p.spawn(n.log(), []string{"PATH=" + p.pgBin + ":" + os.Getenv("PATH")}, "patroni", n.config())
}

func (p *patroni) whole(ctx context.Context) error {
	return until(ctx, "wait for the formation", wholeWait, func(ctx context.Context) error {
		primaries := map[int]string{}
		for _, n := range p.nodes {
			s, err := p.status(ctx, n)
			switch {
			case err != nil:
				return err
			case s.State != "running":
				return fmt.Errorf("%s is %s", n.Name, s.State)
			case !s.leads():
				continue
			case primaries[n.Group] != "":
				return fmt.Errorf("group %d has two primaries", n.Group)
			}
			primaries[n.Group] = n.IP
			if err := s.complete(len(p.hosts(n.Group)) - 1); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
		}
		return p.registered(ctx, primaries)
	})
}

// complete reports whether all standbys stream and one confirms commits.
func (s patroniStatus) complete(standbys int) error {
	streaming, sync := 0, 0
	for _, r := range s.Replication {
		if r.State == "streaming" {
			streaming++
		}
		if r.Sync == "sync" {
			sync++
		}
	}
	if streaming != standbys || sync == 0 {
		return fmt.Errorf("%d of %d standbys stream, %d confirm", streaming, standbys, sync)
	}
	return nil
}

// registered reports whether the coordinator has exactly these primaries, in sync.
func (p *patroni) registered(ctx context.Context, primaries map[int]string) error {
	dsn, err := p.dsn(p.hosts(coordinator))
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, "SELECT groupid, nodename FROM pg_dist_node WHERE noderole = 'primary' AND isactive AND (metadatasynced OR groupid = 0)")
	if err != nil {
		return err
	}
	found := map[int]string{}
	var group int
	var name string
	if _, err := pgx.ForEachRow(rows, []any{&group, &name}, func() error { found[group] = name; return nil }); err != nil {
		return err
	}
	for g := range 3 {
		if primaries[g] == "" || found[g] != primaries[g] {
			return fmt.Errorf("group %d: primary %q, registered %q", g, primaries[g], found[g])
		}
	}
	return nil
}

func (p *patroni) pauseParts(time.Time) ([]step, error) { return nil, nil }

func (p *patroni) logs() []string {
	var out []string
	for _, n := range p.nodes {
		if exists(n.log()) {
			out = append(out, n.log())
		}
	}
	return out
}
