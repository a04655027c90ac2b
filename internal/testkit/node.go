package testkit

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/identity"
	"matriarch/pgmanager/fence"
	"matriarch/transport"
)

// Node is one host under test.
type Node struct {
	c     *Cluster
	Name  string
	Group int
	IP    string
	Dir   string // the state directory

	bin    string
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
}

// Addresses and paths.
func (n *Node) Peer() string    { return fmt.Sprintf("%s:%d", n.IP, peerPort) }
func (n *Node) API() string     { return fmt.Sprintf("%s:%d", n.IP, apiPort) }
func (n *Node) PG() string      { return fmt.Sprintf("%s:%d", n.IP, pgPort) }
func (n *Node) Config() string  { return n.Dir + ".yml" }
func (n *Node) LogFile() string { return n.Dir + ".log" }
func (n *Node) DataDir() string { return filepath.Join(n.Dir, "pgdata") }
func (n *Node) Socket() string  { return filepath.Join(n.Dir, "sentinel.sock") }

// Addresses of the node's proxies.
func (n *Node) ToCoordinator() string { return fmt.Sprintf("%s:%d", n.IP, coordinatorPort) }
func (n *Node) ToWorker() string      { return fmt.Sprintf("%s:%d", n.IP, workerPort) }
func (n *Node) ToStandby() string     { return fmt.Sprintf("%s:%d", n.IP, standbyPort) }

// ID is the node's UUID; empty before it belongs to a cluster.
func (n *Node) ID() fsm.NodeID {
	id, err := identity.Dir(n.Dir).Load()
	if err != nil {
		return ""
	}
	return id.NodeID
}

// CLI runs the program with the node's configuration.
func (n *Node) CLI(args ...string) Result {
	n.c.T.Helper()
	return cli(n.c.T, n.bin, "", append([]string{"--config", n.Config()}, args...)...)
}

// Type is CLI with somebody at the keyboard.
func (n *Node) Type(stdin string, args ...string) Result {
	n.c.T.Helper()
	return cli(n.c.T, n.bin, stdin, append([]string{"--config", n.Config()}, args...)...)
}

// Start runs the agent. It does not wait.
func (n *Node) Start() {
	n.c.T.Helper()
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.c.T.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(n.bin, "run", "--config", n.Config())
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		n.c.T.Fatalf("start %s: %v", n.Name, err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	n.cmd, n.exited = cmd, exited
}

// Use has the next Start run another program.
func (n *Node) Use(bin string) { n.bin = bin }

// Running reports whether the agent's process is there, frozen or not.
func (n *Node) Running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// WaitExit waits until the agent has ended and returns its exit code.
func (n *Node) WaitExit() int {
	n.c.T.Helper()
	select {
	case <-n.exited:
	case <-time.After(waitLimit):
		n.c.T.Fatalf("%s has not ended after %s", n.Name, waitLimit)
	}
	return n.cmd.ProcessState.ExitCode()
}

// Stop ends the agent as a supervisor would and leaves PostgreSQL running.
func (n *Node) Stop() {
	n.c.T.Helper()
	n.end(syscall.SIGTERM)
}

// Interrupt ends the agent and PostgreSQL in good order.
func (n *Node) Interrupt() {
	n.c.T.Helper()
	n.end(syscall.SIGINT)
}

func (n *Node) end(sig syscall.Signal) {
	n.c.T.Helper()
	n.Signal(Agent, sig)
	if code := n.WaitExit(); code != 0 {
		n.c.T.Fatalf("%s ended with code %d after %s", n.Name, code, sig)
	}
}

// Part is one of a node's processes.
type Part string

// The parts.
const (
	Agent      Part = "agent"
	Sentinel   Part = "sentinel"
	Postmaster Part = "postmaster"
)

// PID finds a part's process; 0 when it is not there.
func (n *Node) PID(p Part) int {
	switch p {
	case Agent:
		if n.Running() {
			return n.cmd.Process.Pid
		}
	case Postmaster:
		return postmaster(n.DataDir())
	case Sentinel:
		for _, x := range processesOf(n.Dir) {
			if strings.Contains(x.args, " sentinel --socket ") {
				return x.pid
			}
		}
	}
	return 0
}

// Signal sends a signal to a part, which must be there.
func (n *Node) Signal(p Part, sig syscall.Signal) {
	n.c.T.Helper()
	if err := signalTo(n.PID(p), sig); err != nil {
		n.c.T.Fatalf("%s to the %s of %s: %v", sig, p, n.Name, err)
	}
}

// Kill9 kills one part and waits until it is gone. It returns when that was.
func (n *Node) Kill9(p Part) time.Time {
	n.c.T.Helper()
	pid, at := n.PID(p), time.Now()
	n.Signal(p, syscall.SIGKILL)
	if err := gone(pid, 10*time.Second); err != nil {
		n.c.T.Fatal(err)
	}
	if p == Agent {
		<-n.exited
	}
	return at
}

// PowerOff kills every process of the node at one moment. It returns when that was.
func (n *Node) PowerOff() time.Time {
	n.c.T.Helper()
	at := time.Now()
	PowerOff(n.c.T, n)
	return at
}

// PowerOff kills every process of several nodes at one moment.
func PowerOff(t interface {
	Helper()
	Errorf(string, ...any)
}, nodes ...*Node,
) {
	t.Helper()
	for range 20 {
		var all []process
		for _, n := range nodes {
			all = append(all, n.processes()...)
		}
		if len(all) == 0 {
			break
		}
		killTogether(all)
	}
	for _, n := range nodes {
		if n.cmd != nil {
			<-n.exited
		}
		for _, p := range n.processes() {
			t.Errorf("survived on %s: %d %s", n.Name, p.pid, p.args)
		}
	}
}

// processes are all of the node's, PostgreSQL's included.
func (n *Node) processes() []process {
	return slices.DeleteFunc(processesOf(n.Dir), func(p process) bool { return p.pid == os.Getpid() })
}

// Processes lists what is left of the node, for messages.
func (n *Node) Processes() []string {
	var out []string
	for _, p := range n.processes() {
		out = append(out, fmt.Sprintf("%d %s", p.pid, p.args))
	}
	return out
}

// PostgresProcesses counts those that work in the data directory.
func (n *Node) PostgresProcesses() int {
	return len(slices.DeleteFunc(n.processes(), func(p process) bool { return p.cwd != n.DataDir() }))
}

// FreezeSenders stops the processes that stream WAL to standbys: from then on nothing leaves this server.
func (n *Node) FreezeSenders() {
	n.c.T.Helper()
	found := 0
	for _, p := range n.processes() {
		if p.cwd == n.DataDir() && strings.Contains(p.args, "walsender") {
			found++
			if err := signalTo(p.pid, syscall.SIGSTOP); err != nil {
				n.c.T.Fatal(err)
			}
		}
	}
	if found == 0 {
		n.c.T.Fatalf("%s streams to nobody", n.Name)
	}
}

// Freeze stops a part in its tracks; Thaw lets it go on.
func (n *Node) Freeze(p Part) time.Time {
	n.c.T.Helper()
	at := time.Now()
	n.Signal(p, syscall.SIGSTOP)
	return at
}

// FreezeAll stops every process of the node at one moment: nothing of it speaks any more, and nothing says goodbye. Only PowerOff
// makes sense afterwards. It returns when that was.
func (n *Node) FreezeAll() time.Time {
	n.c.T.Helper()
	at := time.Now()
	for range 2 { // some may have been on their way
		for _, p := range n.processes() {
			_ = signalTo(p.pid, syscall.SIGSTOP) // one that is gone by now is quiet, too
		}
	}
	return at
}

// Thaw ends a Freeze.
func (n *Node) Thaw(p Part) {
	n.c.T.Helper()
	n.Signal(p, syscall.SIGCONT)
}

// SentinelStatus asks the sentinel without becoming its agent.
func (n *Node) SentinelStatus() (fence.Status, error) {
	ctx, cancel := context.WithTimeout(n.c.T.Context(), time.Second)
	defer cancel()
	return fence.Peek(ctx, n.Socket())
}

// Status asks this node, and no other.
func (n *Node) Status() (admin.Status, error) {
	var st admin.Status
	dir := identity.Dir(n.Dir)
	self, err := dir.Load()
	if err != nil {
		return st, err
	}
	tls, err := dir.TLS()
	if err != nil {
		return st, err
	}
	peer := identity.Peer{ID: self.NodeID, Name: self.Name, Addr: n.Peer()}
	cl := admin.NewClient(self, []identity.Peer{peer}, transport.NewClient(&transport.Dialer{Network: transport.TCP{}, Identity: tls}))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return cl.Status(ctx)
}

// Log is what the agent has logged so far.
func (n *Node) Log() string {
	b, err := os.ReadFile(n.LogFile())
	if err != nil {
		return ""
	}
	return string(b)
}
