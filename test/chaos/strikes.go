package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// strike carries a fault out and returns what mends it; nothing when it mends itself.
type strike func(ctx context.Context, f fault, t int) (mend func() error, err error)

// errBusy: the host has a fault that does not go together with this one.
var errBusy = errors.New("the host has its like already")

// dyingLimit bounds the end of a host: who waits for a disk that hangs dies when it goes on.
const dyingLimit = 20 * time.Second

// strikes are those that need no more than the host.
func (n *nemesis) strikes() map[string]strike {
	node := func(t int) *node { return n.f.nodes[t] }
	kill := func(_ context.Context, f fault, t int) (func() error, error) {
		all, err := processes(t)
		if err != nil {
			return nil, err
		}
		_, what, _ := strings.Cut(f.kind, " ")
		return nil, signalAll(part(all, what, f.split), syscall.SIGKILL)
	}
	stop := func(_ context.Context, f fault, t int) (func() error, error) {
		_, what, _ := strings.Cut(f.kind, " ")
		return stop(t, what)
	}
	return map[string]strike{
		"kill postmaster": kill, "kill backend": kill, "kill agent": kill, "kill sentinel": kill,
		"stop agent": stop, "stop sentinel": stop, "stop postmaster": stop, "stop host": stop,
		"kill host": func(_ context.Context, _ fault, t int) (func() error, error) {
			return func() error { return n.powerOn(t) }, n.powerOff(t)
		},
		"freeze host":     func(_ context.Context, _ fault, t int) (func() error, error) { return node(t).cgroup.freeze() },
		"slow link":       func(_ context.Context, f fault, t int) (func() error, error) { return slow(t, f.id) },
		"full disk":       n.exclusive(n.fullDisk),
		"full Raft disk":  n.exclusive(func(f fault, t int) (func() error, error) { return node(t).raft.fill(fmt.Sprintf("ballast-%d", f.id)) }),
		"disk hangs":      n.exclusive(func(_ fault, t int) (func() error, error) { return node(t).data.hang() }),
		"Raft disk hangs": n.exclusive(func(_ fault, t int) (func() error, error) { return node(t).raft.hang() }),
		"disk dies":       n.exclusive(n.diskDies),
		"power cut":       n.exclusive(n.powerCut),
		"remove and add":  n.removeAndAdd,
		"switchover": n.verb(func(f fault) []string {
			return []string{"switchover", "--group", fmt.Sprint(f.group), "--yes", "--wait", "30s"}
		}),
		"restart": n.verb(func(f fault) []string {
			return []string{"restart", "--group", fmt.Sprint(f.group), "--yes", "--wait", "30s"}
		}),
		"reinit":          n.verb(func(f fault) []string { return []string{"reinit", host(f.node), "--yes"} }),
		"transfer leader": n.verb(func(f fault) []string { return []string{"transfer-leader", host(f.node)} }),
	}
}

func (n *nemesis) strike(ctx context.Context, f fault, t int) (func() error, error) {
	if rules := cutRules(f, t); rules != nil {
		return func() error { return n.net.set(f.id, nil) }, n.net.set(f.id, rules)
	}
	s, ok := n.plain[f.kind]
	if !ok {
		return nil, errors.New("unknown kind")
	}
	return s(ctx, f, t)
}

// exclusive has a host one such fault at a time: each leaves its disks to the next as it found them.
func (n *nemesis) exclusive(s func(f fault, t int) (func() error, error)) strike {
	return func(_ context.Context, f fault, t int) (func() error, error) {
		node := n.f.nodes[t]
		if !node.claim() {
			return nil, errBusy
		}
		mend, err := s(f, t)
		if err != nil || mend == nil {
			node.release()
			return nil, err
		}
		return func() error { defer node.release(); return mend() }, nil
	}
}

// verb has an operator ask for something while other things happen. It may be refused.
func (n *nemesis) verb(args func(f fault) []string) strike {
	return func(ctx context.Context, f fault, _ int) (func() error, error) {
		n.wg.Go(func() {
			_, err := n.f.askVia(ctx, n.f.nodes[f.node], 40*time.Second, args(f)...)
			n.trace.note("%s #%d: %s", strings.Join(args(f), " "), f.id, outcome(err))
		})
		return nil, nil
	}
}

func outcome(err error) string {
	if err == nil {
		return "done"
	}
	text, _, more := strings.Cut(err.Error(), "\n")
	if more {
		text += " ..."
	}
	return text
}

// spendEvery is how often the group of a full disk is made to take another segment of WAL: it has some in reserve.
const spendEvery = 400 * time.Millisecond

// fullDisk leaves no room for more WAL, and has the group need more, which its standbys get as well.
func (n *nemesis) fullDisk(f fault, t int) (func() error, error) {
	empty, err := n.f.nodes[t].data.fill(fmt.Sprintf("ballast-%d", f.id))
	if empty == nil || err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	n.wg.Go(func() {
		s := session{dsn: n.f.dsn("read-write", members(groupOf[t])...)}
		defer s.drop()
		for sleep(ctx, spendEvery) {
			_, _ = s.do(ctx, func(ctx context.Context, c *pgx.Conn) error {
				_, err := c.Exec(ctx, "INSERT INTO chaos_probe (node) VALUES (-1); SELECT pg_switch_wal()", pgx.QueryExecModeSimpleProtocol)
				return err
			})
		}
	})
	return func() error { stop(); return empty() }, nil
}

// diskDies fails everything on PostgreSQL's disk, until somebody takes the host down and puts another disk in with what was synced.
func (n *nemesis) diskDies(_ fault, t int) (func() error, error) {
	data := n.f.nodes[t].data
	return func() error {
		return errors.Join(n.powerOff(t), data.replace(), n.powerOn(t))
	}, data.die()
}

// powerCut ends a host and all that it has not synced.
func (n *nemesis) powerCut(_ fault, t int) (func() error, error) {
	node := n.f.nodes[t]
	return func() error {
		return errors.Join(node.data.replace(), node.raft.replace(), n.powerOn(t))
	}, n.powerOff(t, node.data, node.raft)
}

// powerOff takes the cable out first, so that nobody hears the connections end. The disks given lose what was not synced.
func (n *nemesis) powerOff(t int, lose ...*disk) error {
	n.hold(t)
	n.mu.Lock()
	n.unplugged[t]++
	n.mu.Unlock()
	node := n.f.nodes[t]
	if err := link(t, "down"); err != nil {
		return err
	}
	for _, d := range lose {
		if err := d.die(); err != nil {
			return err
		}
	}
	return end(node)
}

// end kills all processes of a host.
func end(n *node) error {
	if err := n.cgroup.kill(); err != nil {
		return err
	}
	for deadline := time.Now().Add(dyingLimit); ; time.Sleep(time.Millisecond) {
		all, err := processes(n.i)
		if err != nil || len(all) == 0 {
			return err
		}
		if err := signalAll(all, syscall.SIGKILL); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of %s survive: %s", len(all), n.name(), all[0].args)
		}
	}
}

func (n *nemesis) powerOn(t int) error {
	n.mu.Lock()
	n.unplugged[t]--
	last := n.unplugged[t] == 0
	n.mu.Unlock()
	var err error
	if last {
		err = link(t, "up")
	}
	n.letGo(t)
	return err
}

// stop stops processes; twice, since some may have been on their way.
func stop(t int, what string) (func() error, error) {
	var stopped []process
	for range 2 {
		all, err := processes(t)
		if err != nil {
			return nil, err
		}
		stopped = part(all, what, 0)
		if err := signalAll(stopped, syscall.SIGSTOP); err != nil {
			return nil, err
		}
	}
	return func() error {
		all, err := processes(t)
		if err != nil {
			return err
		}
		there := map[int]bool{}
		for _, p := range all {
			there[p.pid] = true
		}
		var errs []error
		for _, p := range stopped {
			if there[p.pid] {
				errs = append(errs, signalAll([]process{p}, syscall.SIGCONT))
			}
		}
		return errors.Join(errs...)
	}, nil
}
