package testkit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/pgmanager/pgtest"
)

// Ports of every node; the addresses differ.
const (
	peerPort = 7400
	apiPort  = 8008
	pgPort   = 6432
	// of the proxies, in the order of their kinds.
	coordinatorPort, workerPort, standbyPort = 6433, 6434, 6435
)

// Cluster is one cluster under test.
type Cluster struct {
	T     *testing.T
	Bin   string
	Dir   string
	Nodes []*Node // in the order of their making, also those that left
	Token string
	Flags []string // for bootstrap and join, before the test's own
	Proxy bool     // nodes are made with proxies for clients

	net  string // 127.x.y
	lock net.Listener

	broken bool // a chapter ended in the middle
}

// New makes room for a cluster: a directory and a network of its own. The cluster has no Citus unless Flags is changed.
func New(t *testing.T) *Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real clusters")
	}
	c := &Cluster{T: t, Bin: Program(t), Flags: []string{"--no-citus", "--pg-bin", pgtest.Bin()}}
	select {
	case slots <- struct{}{}:
	case <-t.Context().Done():
		t.Fatal("no room for another cluster")
	}
	t.Cleanup(c.end)
	var err error
	if c.Dir, err = os.MkdirTemp(root, "c-"); err == nil {
		err = os.Chmod(c.Dir, 0o755) //nolint:gosec // PostgreSQL's own user passes through it
	}
	if err != nil {
		t.Fatal(err)
	}
	c.lock, c.net = ownNetwork(t)
	return c
}

// Run runs a chapter of the test's story on the same cluster. After a chapter that ended in the middle the others make no sense.
func (c *Cluster) Run(name string, f func(t *testing.T)) {
	whole := c.T
	defer func() { c.T = whole }()
	whole.Run(name, func(t *testing.T) {
		if c.broken {
			t.Skip("an earlier chapter ended in the middle")
		}
		c.T, c.broken = t, true
		f(t)
		c.broken = false
	})
}

// ownNetwork finds a /24 of the loopback network that no other test uses, on this machine at this time.
func ownNetwork(t *testing.T) (net.Listener, string) {
	t.Helper()
	for range 100 {
		prefix := fmt.Sprintf("127.%d.%d", 100+rand.IntN(150), rand.IntN(250))
		if l, err := net.Listen("tcp", prefix+".254:7399"); err == nil {
			return l, prefix
		}
	}
	t.Fatal("no free loopback network found")
	return nil, ""
}

// node lays a node out: names, addresses, paths. Nothing exists yet.
func (c *Cluster) node(name string, group int) *Node {
	n := &Node{c: c, Name: name, Group: group, IP: fmt.Sprintf("%s.%d", c.net, len(c.Nodes)+1), Dir: filepath.Join(c.Dir, name), bin: c.Bin}
	c.Nodes = append(c.Nodes, n)
	return n
}

// Lay lays a node out without bootstrap or join.
func (c *Cluster) Lay(name string, group int) *Node { return c.node(name, group) }

// Named finds a node.
func (c *Cluster) Named(name string) *Node {
	c.T.Helper()
	i := slices.IndexFunc(c.Nodes, func(n *Node) bool { return n.Name == name })
	if i < 0 {
		c.T.Fatalf("no node %s", name)
	}
	return c.Nodes[i]
}

func (c *Cluster) byID(id fsm.NodeID) *Node {
	for _, n := range c.Nodes {
		if n.ID() == id {
			return n
		}
	}
	return nil
}

// HostFlags are what bootstrap and join need to know of the node.
func (n *Node) HostFlags() []string {
	flags := []string{
		"--config", n.Config(), "--name", n.Name, "--group", fmt.Sprint(n.Group), "--listen", n.Peer(), "--api", n.API(), "--pg-listen", n.PG(), "--state-dir", n.Dir,
	}
	if n.c.Proxy {
		flags = append(flags, "--proxy-coordinator", n.ToCoordinator(), "--proxy-worker", n.ToWorker(), "--proxy-standby", n.ToStandby())
	}
	return append(flags, n.c.Flags...)
}

// Bootstrap makes the first node and starts it.
func (c *Cluster) Bootstrap(name string, extra ...string) *Node {
	c.T.Helper()
	n := c.node(name, 0)
	r := n.BootstrapOnly(extra...)
	if r.Code != 0 {
		c.T.Fatalf("bootstrap %s: exit %d\n%s%s", name, r.Code, r.Out, r.Err)
	}
	c.Token = TokenOf(c.T, r.Out)
	n.Start()
	return n
}

// Adopt makes a node with a database of its own the first one, and starts it.
func (c *Cluster) Adopt(n *Node) {
	c.T.Helper()
	r := n.BootstrapOnly("--adopt")
	if r.Code != 0 {
		c.T.Fatalf("adopt %s: exit %d\n%s%s", n.DataDir(), r.Code, r.Out, r.Err)
	}
	c.Token = TokenOf(c.T, r.Out)
	n.Start()
}

// BootstrapOnly runs the verb and nothing else.
func (n *Node) BootstrapOnly(extra ...string) Result {
	n.c.T.Helper()
	return cli(n.c.T, n.bin, "", slices.Concat([]string{"--output", "json", "bootstrap"}, n.HostFlags(), extra)...)
}

// TokenOf finds the token in what bootstrap or `token create` printed as JSON.
func TokenOf(t testing.TB, out string) string {
	t.Helper()
	var made struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Token == "" {
		t.Fatalf("no token in %q: %v", out, err)
	}
	return made.Token
}

// Join makes further nodes and starts each.
func (c *Cluster) Join(group int, names ...string) []*Node {
	c.T.Helper()
	var out []*Node
	for _, name := range names {
		n := c.node(name, group)
		c.Eventually("the cluster takes "+name, func() error {
			if r := n.JoinOnly(c.Token, c.Nodes[0].Peer()); r.Code != 0 {
				return fmt.Errorf("exit %d: %s", r.Code, r.Err)
			}
			return nil
		})
		n.Start()
		out = append(out, n)
	}
	return out
}

// JoinOnly runs the verb once and nothing else.
func (n *Node) JoinOnly(token, addr string, extra ...string) Result {
	n.c.T.Helper()
	return cli(n.c.T, n.bin, "", slices.Concat([]string{"--output", "json", "join", addr, "--token", token}, n.HostFlags(), extra)...)
}

// NewToken makes a join token on a node.
func (n *Node) NewToken(args ...string) string {
	n.c.T.Helper()
	r := n.CLI(append([]string{"--output", "json", "token", "create"}, args...)...)
	if r.Code != 0 {
		n.c.T.Fatalf("make a token: %s", r.Err)
	}
	return TokenOf(n.c.T, r.Out)
}

// Eventually polls until check has no error; the last one tells why it failed.
func (c *Cluster) Eventually(what string, check func() error) {
	c.T.Helper()
	c.EventuallyWithin(waitLimit, what, check)
}

const (
	// waitLimit is for things that take seconds on an idle machine.
	waitLimit = 3 * time.Minute
	waitPoll  = 50 * time.Millisecond
)

// EventuallyWithin is Eventually with a limit of its own.
func (c *Cluster) EventuallyWithin(limit time.Duration, what string, check func() error) {
	c.T.Helper()
	ctx, cancel := context.WithTimeout(c.T.Context(), limit)
	defer cancel()
	tick := time.NewTicker(waitPoll)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			if err = check(); err == nil { // the test itself may have stood still
				return
			}
			c.T.Fatalf("waited %s: %s: %v", limit, what, err)
		case <-tick.C:
		}
	}
}

// end kills whatever is left and keeps the logs of a test that failed.
func (c *Cluster) end() {
	defer func() { <-slots }()
	if c.Dir == "" {
		return
	}
	if c.T.Failed() {
		c.saveLogs()
	}
	for range 20 {
		left := processesOf(c.Dir)
		if len(left) == 0 {
			break
		}
		killTogether(left)
	}
	for _, p := range processesOf(c.Dir) {
		c.T.Errorf("left over: %d %s", p.pid, p.args)
	}
	if c.lock != nil {
		_ = c.lock.Close()
	}
	if os.Getenv("MATRIARCH_KEEP") == "" {
		_ = os.RemoveAll(c.Dir)
	} else {
		c.T.Log("kept", c.Dir)
	}
}

// saveLogs copies the logs to the test's artifacts and shows the end of each.
func (c *Cluster) saveLogs() {
	if st, err := c.status(); err == nil {
		c.T.Logf("the cluster at the end:\n%s", describe(st))
	} else {
		c.T.Logf("the cluster at the end: %v", err)
	}
	for _, n := range c.Nodes {
		for _, path := range []string{n.LogFile(), filepath.Join(n.Dir, "sentinel.log"), filepath.Join(n.Dir, "postgresql.log"), filepath.Join(n.Dir, "pg", "local.json")} {
			b, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			name := n.Name + "-" + filepath.Base(path)
			_ = os.WriteFile(filepath.Join(c.T.ArtifactDir(), name), b, 0o600)
			c.T.Logf("end of %s:\n%s", name, tail(b, 25))
		}
	}
}

func tail(b []byte, lines int) string {
	all := strings.Split(string(bytes.TrimSpace(b)), "\n")
	all = all[max(0, len(all)-lines):]
	for i := range all {
		all[i] = "  " + all[i][:min(len(all[i]), 400)]
	}
	return strings.Join(all, "\n")
}
