package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"matriarch/internal/admin"
	"matriarch/internal/identity"
)

const (
	peerPort, pgPort, apiPort = 7400, 5432, 8008
	restartAfter              = 200 * time.Millisecond // as in deploy/systemd
)

// node is one host.
type node struct {
	i, group   int
	dir        string
	raft, data *disk
	cgroup     cgroup
	mu         sync.Mutex
	off        bool // powered off: nobody starts the agent again
	claimed    bool // by a fault that has the disks to itself
}

func (n *node) name() string   { return host(n.i) }
func (n *node) config() string { return filepath.Join(n.dir, "matriarch.yml") }
func (n *node) state() string  { return filepath.Join(n.raft.dir, "state") }
func (n *node) pgdata() string { return filepath.Join(n.data.dir, "pgdata") }
func (n *node) log() string    { return filepath.Join(n.dir, "matriarch.log") }

func (n *node) setOff(off bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.off = off
}

func (n *node) isOff() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.off
}

func (n *node) claim() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.claimed
	n.claimed = true
	return !was
}

func (n *node) release() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.claimed = false
}

// formation is five nodes of the built program.
type formation struct {
	exe, pgBin, password string
	citus                bool
	nodes                []*node
	trace                *trace
}

// groupOf says where the nodes belong: three to group 0, two to group 1.
var groupOf = []int{0, 0, 0, 1, 1}

func groups() []int { return []int{0, 1} }

func newFormation(o options, m machine, tr *trace) (*formation, error) {
	f := &formation{exe: o.exe, pgBin: o.pgBin, citus: o.citus, trace: tr}
	for i, g := range groupOf {
		n := &node{i: i, group: g, dir: filepath.Join(o.dir, host(i))}
		var err error
		if n.raft, err = m.disk(filepath.Join(n.dir, "raft"), stateMB); err == nil {
			n.data, err = m.disk(filepath.Join(n.dir, "data"), dataMB)
		}
		if err == nil && m.cgroups != "" {
			n.cgroup, err = newCgroup(m.cgroups, cgroupPrefix+m.run+"-"+n.name())
		}
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", n.name(), err)
		}
		f.nodes = append(f.nodes, n)
	}
	return f, nil
}

func (f *formation) flags(n *node) []string {
	at := func(port int) string { return fmt.Sprintf("%s:%d", ip(n.i), port) }
	out := []string{
		"--config", n.config(), "--output", "json", "--name", n.name(), "--group", fmt.Sprint(n.group), "--listen", at(peerPort), "--api", at(apiPort), "--pg-listen", at(pgPort),
		"--state-dir", n.state(), "--data-dir", n.pgdata(),
	}
	if !f.citus {
		out = append(out, "--no-citus")
	}
	if f.pgBin != "" {
		out = append(out, "--pg-bin", f.pgBin)
	}
	return out
}

func inside(ctx context.Context, n *node, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + nsFile(n.i)}, args...)...)
}

func output(cmd *exec.Cmd) ([]byte, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// up makes the formation and waits until it is healthy.
func (f *formation) up(ctx context.Context) error {
	first := f.nodes[0]
	out, err := output(inside(ctx, first, append([]string{f.exe, "bootstrap", "--database", "app"}, f.flags(first)...)...))
	if err != nil {
		return err
	}
	var made struct{ Token string }
	if err := json.Unmarshal(out, &made); err != nil {
		return fmt.Errorf("bootstrap: read its answer: %w", err)
	}
	go f.supervise(ctx, first)
	for _, n := range f.nodes[1:] {
		n.setOff(true) // no host to ask yet
	}
	for _, n := range f.nodes[1:] {
		if err := until(ctx, time.Minute, func() error { return f.join(ctx, n, made.Token) }); err != nil {
			return err
		}
		n.setOff(false)
		go f.supervise(ctx, n)
	}
	if f.password, err = identity.Dir(first.state()).Secret(identity.Superuser); err != nil {
		return err
	}
	_, err = f.converge(ctx, 2*time.Minute)
	return err
}

// supervise starts the agent again and again, as systemd would.
func (f *formation) supervise(ctx context.Context, n *node) {
	for ctx.Err() == nil {
		if !n.isOff() {
			err := f.runAgent(n)
			f.trace.note("agent of %s ended: %v", n.name(), err)
		}
		sleep(ctx, restartAfter)
	}
}

func (f *formation) runAgent(n *node) error {
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := inside(context.Background(), n, n.cgroup.start(f.exe, "run", "--config", n.config())...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Run()
}

// ask runs a verb through the first node that answers.
func (f *formation) ask(ctx context.Context, limit time.Duration, args ...string) ([]byte, error) {
	var errs []error
	for _, n := range f.nodes {
		if n.isOff() {
			continue
		}
		out, err := f.askVia(ctx, n, limit, args...)
		if err == nil {
			return out, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (f *formation) askVia(ctx context.Context, n *node, limit time.Duration, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return output(exec.CommandContext(ctx, f.exe, append([]string{"--config", n.config()}, args...)...))
}

func (f *formation) list(ctx context.Context) (l admin.Formation, err error) {
	out, err := f.ask(ctx, 5*time.Second, "list", "--output", "json")
	if err != nil {
		return l, err
	}
	return l, json.Unmarshal(out, &l)
}

// converge waits until everything is as it should be, and says how long that took.
func (f *formation) converge(ctx context.Context, limit time.Duration) (time.Duration, error) {
	began := time.Now()
	err := until(ctx, limit, func() error {
		l, err := f.list(ctx)
		if err != nil {
			return err
		}
		return whole(l, len(f.nodes))
	})
	return time.Since(began), err
}

func whole(l admin.Formation, nodes int) error {
	if !l.Healthy || len(l.Members) != nodes || len(l.Groups) != len(groups()) {
		return fmt.Errorf("%d members, %d groups; %s", len(l.Members), len(l.Groups), strings.Join(l.Troubles, "; "))
	}
	timelines := map[int]uint32{}
	for _, m := range l.Members {
		if t, ok := timelines[int(m.Group)]; ok && t != uint32(m.Timeline) {
			return fmt.Errorf("group %d: %s is on timeline %d, another on %d", m.Group, m.Name, m.Timeline, t)
		}
		timelines[int(m.Group)] = uint32(m.Timeline)
	}
	for _, g := range l.Groups {
		if len(g.Joint) > 0 || g.Operation != nil || g.Degraded {
			return fmt.Errorf("group %d is being changed", g.ID)
		}
	}
	return nil
}

// dsn leads to whichever of the hosts accepts writes; to a single one, whatever it is.
func (f *formation) dsn(attrs string, hosts ...int) string {
	var at []string
	for _, i := range hosts {
		at = append(at, fmt.Sprintf("%s:%d", ip(i), pgPort))
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", f.password), Host: strings.Join(at, ","), Path: "/app"}
	u.RawQuery = url.Values{"target_session_attrs": {attrs}, "connect_timeout": {"1"}, "sslmode": {"prefer"}, "default_query_exec_mode": {"exec"}, "application_name": {"chaos"}}.Encode()
	return u.String()
}

func members(group int) (out []int) {
	for i, g := range groupOf {
		if g == group {
			out = append(out, i)
		}
	}
	return out
}

// saveLogs copies what explains a failure.
func (f *formation) saveLogs(to string) error {
	var errs []error
	for _, n := range f.nodes {
		for _, pattern := range []string{n.log(), filepath.Join(n.state(), "*.log"), filepath.Join(n.state(), "*", "*.log"), filepath.Join(n.state(), "pg", "*.json")} {
			files, _ := filepath.Glob(pattern)
			for _, file := range files {
				errs = append(errs, copyFile(file, filepath.Join(to, n.name()+"-"+filepath.Base(file))))
			}
		}
	}
	return errors.Join(errs...)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// until asks every half second; the last reason is the error.
func until(ctx context.Context, limit time.Duration, ok func() error) error {
	for deadline := time.Now().Add(limit); ; {
		err := ok()
		if err == nil {
			return nil
		}
		if !sleep(ctx, 500*time.Millisecond) || time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %w", limit, err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
