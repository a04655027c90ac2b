package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// fault is one thing that goes wrong, as the seed has it.
type fault struct {
	id    int
	kind  string
	after time.Duration // since the one before began
	lasts time.Duration
	group int
	aim   string // primary of the group, leader of Raft, or the node
	node  int
	split int // a bit a node: which side it is on
}

func (f fault) String() string {
	return fmt.Sprintf("#%d after %s: %s for %s at %s (group %d, node %s, split %05b)", f.id, f.after, f.kind, f.lasts, f.aim, f.group, host(f.node), f.split)
}

// frozen kinds stop server and sentinel together: only a watchdog would end what a primary commits locally when it thaws.
var frozen = map[string]bool{"freeze host": true, "stop sentinel": true}

// kinds and how often they come.
var kinds = []struct {
	name   string
	weight int
}{
	{"halves", 3},
	{"ring", 1},
	{"cut node", 3},
	{"cut from", 2},
	{"cut to", 2},
	{"cut peer port", 2},
	{"cut 5432", 2},
	{"kill postmaster", 3},
	{"kill backend", 2},
	{"kill agent", 3},
	{"kill sentinel", 2},
	{"kill host", 4},
	{"stop agent", 2},
	{"stop sentinel", 2},
	{"stop postmaster", 2},
	{"freeze host", 3},
	{"loss", 2},
	{"slow link", 1},
	{"full disk", 2},
	{"switchover", 3},
}

// plan draws the faults of so much time. One in four begins while the one before it lasts.
func plan(seed uint64, total time.Duration, without map[string]bool) []fault {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // replayable on purpose
	sum := 0
	for _, k := range kinds {
		sum += k.weight
	}
	span := func(lo, hi int) time.Duration {
		return time.Duration(lo+r.IntN((hi-lo)/100+1)*100) * time.Millisecond
	}
	var out []fault
	var at, free time.Duration
	for id := 1; ; id++ {
		f := fault{id: id, group: []int{0, 0, 1}[r.IntN(3)], node: r.IntN(len(groupOf)), split: 1 + r.IntN(1<<len(groupOf)-2), lasts: span(500, 8000)}
		f.aim = []string{"primary", "primary", "node", "node", "leader"}[r.IntN(5)]
		n := r.IntN(sum)
		for _, k := range kinds {
			if n -= k.weight; n < 0 {
				f.kind = k.name
				break
			}
		}
		begin := free + span(500, 5000)
		if r.IntN(4) == 0 {
			begin = at + span(300, 2000)
		}
		if begin+f.lasts > total {
			return out
		}
		f.after, at = begin-at, begin
		free = max(free, begin+f.lasts)
		if !without[f.kind] {
			out = append(out, f)
		}
	}
}

// nemesis carries faults out and mends them.
type nemesis struct {
	f       *formation
	net     *network
	trace   *trace
	primary func(group int) int
	wg      sync.WaitGroup
	mu      sync.Mutex
	errs    []error
	off     map[int]int // how many faults hold a host's power off
}

// run plays the plan; in the end everything is mended.
func (n *nemesis) run(ctx context.Context, faults []fault) error {
	n.off = map[int]int{}
	for _, f := range faults {
		if !sleep(ctx, f.after) {
			break
		}
		n.wg.Go(func() {
			if err := n.play(ctx, f); err != nil {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.errs = append(n.errs, fmt.Errorf("fault %s: %w", f, err))
			}
		})
	}
	n.wg.Wait()
	return errors.Join(n.errs...)
}

func (n *nemesis) play(ctx context.Context, f fault) error {
	target := n.target(ctx, f)
	n.trace.note("begin %s: %s for %s, %s", fmt.Sprintf("#%d", f.id), f.kind, f.lasts, host(target))
	mend, err := n.strike(ctx, f, target)
	if err != nil {
		return err
	}
	sleep(ctx, f.lasts)
	if mend != nil {
		err = mend()
	}
	n.trace.note("end   #%d: %s, %s", f.id, f.kind, host(target))
	return err
}

func (n *nemesis) target(ctx context.Context, f fault) int {
	switch f.aim {
	case "primary":
		return n.primary(f.group)
	case "leader":
		lctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if l, err := n.f.list(lctx); err == nil {
			for i := range groupOf {
				if l.Raft.Leader == host(i) {
					return i
				}
			}
		}
	}
	return f.node
}

// strike returns what mends it; nothing when it mends itself.
func (n *nemesis) strike(ctx context.Context, f fault, t int) (func() error, error) {
	if rules := cutRules(f, t); rules != nil {
		return func() error { return n.net.set(f.id, nil) }, n.net.set(f.id, rules)
	}
	verb, what, _ := strings.Cut(f.kind, " ")
	switch f.kind {
	case "kill host":
		return func() error { return n.powerOn(t) }, n.powerOff(t)
	case "freeze host", "stop agent", "stop sentinel", "stop postmaster":
		return freeze(t, what)
	case "slow link":
		return func() error { return unslow(t) }, slow(t)
	case "full disk":
		return fill(filepath.Join(n.f.nodes[t].dir, fmt.Sprintf("ballast-%d", f.id)))
	case "switchover":
		n.wg.Go(func() {
			_, err := n.f.askVia(ctx, n.f.nodes[f.node], 40*time.Second, "switchover", "--group", fmt.Sprint(f.group), "--yes", "--wait", "30s")
			n.trace.note("switchover #%d of group %d: %s", f.id, f.group, outcome(err))
		})
		return nil, nil
	}
	all, err := processes(t)
	if err != nil {
		return nil, err
	}
	if verb != "kill" {
		return nil, errors.New("unknown kind")
	}
	return nil, signalAll(part(all, what, f.split), syscall.SIGKILL)
}

func outcome(err error) string {
	if err == nil {
		return "done"
	}
	return err.Error()
}

// cutRules are those of faults that only concern the network between hosts.
func cutRules(f fault, t int) []string {
	var out []string
	hosts := len(groupOf)
	switch f.kind {
	case "halves":
		for a := range hosts {
			for b := range a {
				if f.split>>a&1 != f.split>>b&1 {
					out = append(out, both(a, b)...)
				}
			}
		}
	case "ring": // everybody sees two neighbours, which is a majority with oneself
		for a := range hosts {
			out = append(out, both(a, (a+2)%hosts)...)
		}
	case "cut node", "cut from", "cut to":
		for b := range hosts {
			if b != t && f.kind != "cut to" {
				out = append(out, cut(t, b))
			}
			if b != t && f.kind != "cut from" {
				out = append(out, cut(b, t))
			}
		}
	case "cut peer port":
		out = cutPort(t, peerPort)
	case "cut 5432":
		out = cutPort(t, pgPort)
	case "loss":
		out = lose(t, 10+f.split)
	}
	return out
}

// powerOff takes the cable out first, so that nobody hears the connections end.
func (n *nemesis) powerOff(t int) error {
	n.mu.Lock()
	n.off[t]++
	n.mu.Unlock()
	n.f.nodes[t].setOff(true)
	if err := link(t, "down"); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		all, err := processes(t)
		if err != nil || len(all) == 0 {
			return err
		}
		if err := signalAll(all, syscall.SIGKILL); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of %s survive: %s", len(all), host(t), all[0].args)
		}
	}
}

func (n *nemesis) powerOn(t int) error {
	n.mu.Lock()
	n.off[t]--
	last := n.off[t] == 0
	n.mu.Unlock()
	if !last {
		return nil
	}
	err := link(t, "up")
	n.f.nodes[t].setOff(false)
	return err
}

// freeze stops processes; twice, since some may have been on their way.
func freeze(t int, what string) (func() error, error) {
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

// fill takes all the space of a host's disk.
func fill(file string) (func() error, error) {
	out, err := os.Create(file)
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			return nil, nil
		}
		return nil, err
	}
	defer out.Close()
	for size := int64(64 << 20); size >= 4096; {
		at, err := out.Seek(0, 2)
		if err != nil {
			return nil, err
		}
		if err := syscall.Fallocate(int(out.Fd()), 0, at, size); err != nil {
			size /= 2
		}
	}
	return func() error { return os.Remove(file) }, nil
}
