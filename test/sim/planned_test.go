package sim

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"matriarch/fsm"
)

// scene is a healthy cluster with clients, in which one piece of planned work is asked for.
type scene struct {
	*nemesis
	old, to *machine // the primary before, and the standby that is asked for or could be
	clients []*client
}

// act builds a scene in a bubble, lets play run in it, and checks what must hold afterwards.
func act(t *testing.T, seed uint64, sizes []int, play func(s *scene) string) {
	t.Parallel()
	dir := scratch(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		w, err := newWorld(ctx, seed, dir)
		if err != nil {
			t.Fatal(err)
		}
		why := func() (why string) {
			defer func() {
				w.stop(cancel)
				if why == "" {
					why = w.violated()
				}
			}()
			w.early, w.plain = seed%2 == 0, true
			if err := w.form(ctx, sizes); err != nil {
				return err.Error()
			}
			if why := w.converge(len(sizes), 60*time.Second); why != "" {
				return "formation: " + why
			}
			s := &scene{nemesis: &nemesis{w: w, ctx: ctx, busy: map[*machine]string{}}, clients: w.startClients(ctx, len(sizes))}
			_ = pause(ctx, 3*time.Second)
			p, standbys := s.cast(0)
			s.old, s.to = p, standbys[0]
			for i := 0; seed%2 == 1 && w.leader() == s.old && i < 90; i++ { // it moves off the primary's host after a while
				_ = pause(ctx, time.Second)
			}
			if why := play(s); why != "" {
				return why
			}
			s.pending.Wait()
			_ = pause(ctx, 2*time.Second) // what stood still may still lose its lease
			if why := w.converge(len(sizes), 60*time.Second); why != "" {
				return "does not converge: " + why
			}
			if why := w.writable(s.clients); why != "" {
				return why
			}
			return w.settled()
		}()
		if why != "" || os.Getenv("MATRIARCH_SIM_TRACE") != "" {
			keepTrace(t, w, why)
		}
		if why != "" {
			t.Errorf("seed %d: %s", seed, why)
		}
	})
}

// settled judges the end: one writer, which has everything.
func (w *World) settled() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	writers := 0
	for _, m := range w.machines {
		if p := m.server.proc; p != nil && p.primary && m.group == 0 {
			w.judgeHistory(p, "at the end", everyEpoch)
			writers++
		}
	}
	if writers != 1 {
		return fmt.Sprintf("%d primaries", writers)
	}
	return w.broken
}

// newest is group 0 as the node that knows most has it.
func (w *World) newest() fsm.Group { return w.known().Groups[0] }

// known is the newest state that any node has.
func (w *World) known() *fsm.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	var s *fsm.State
	for _, m := range w.machines {
		if m.agent == nil {
			continue
		}
		if o := m.agent.node.State(); s == nil || o.Index > s.Index {
			s = o
		}
	}
	return s
}

func (w *World) leader() *machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.machines {
		if m.agent != nil && m.agent.leads.Load() {
			return m
		}
	}
	return w.machines[0]
}

// over waits for the end of the operation and returns it.
func (s *scene) over(within time.Duration) *fsm.Operation {
	for end := time.Now().Add(within); time.Now().Before(end) && pause(s.ctx, 20*time.Millisecond) == nil; {
		if g := s.w.newest(); g.Op == nil && g.LastOp != nil {
			return g.LastOp
		}
	}
	return nil
}

// manySeeds is how often each of these tests runs: MATRIARCH_SIM_PHASE_SEEDS takes the place of few.
func manySeeds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("MATRIARCH_SIM_PHASE_SEEDS")); err == nil {
		return n
	}
	if testing.Short() {
		return 1
	}
	return few
}

func (s *scene) operation(kind string, named bool) fsm.Operation {
	op := fsm.Operation{Kind: kind, By: "test", At: time.Now()}
	if kind == fsm.Switchover && named {
		op.To = s.to.id
	}
	return op
}

// TestSwitchoverWithoutFaults: no client sees an error, and all are where they should be afterwards.
func TestSwitchoverWithoutFaults(t *testing.T) {
	for _, kind := range []string{fsm.Switchover, fsm.Restart} {
		for _, sizes := range [][]int{{3}, {2, 1}, {3, 2}} {
			for seed := range manySeeds(4) {
				t.Run(fmt.Sprintf("%s/%v/%d", kind, sizes, seed), func(t *testing.T) {
					act(t, uint64(seed), sizes, func(s *scene) string { return calm(s, kind, seed%2 == 0) })
				})
			}
		}
	}
}

func calm(s *scene, kind string, named bool) string {
	before, copies := fails(s.clients), s.w.copies()
	if err := s.submit(s.any(), 0, s.operation(kind, named)); err != nil {
		return "refused: " + err.Error()
	}
	op := s.over(30 * time.Second)
	switch {
	case op == nil:
		return "the operation does not end"
	case !op.Done:
		return "given up: " + op.Outcome
	case kind == fsm.Switchover && (op.From != s.old.id || named && op.To != s.to.id || op.To == s.old.id):
		return fmt.Sprintf("from %s to %s", op.From, op.To)
	case op.PausedMS == 0 || op.PausedMS > 1500:
		return fmt.Sprintf("paused %d ms", op.PausedMS)
	}
	if p := s.w.newest().Sync.Target(); p.K == 0 || kind == fsm.Switchover && !p.Has(s.old.id) {
		return fmt.Sprintf("opened with %d of %v, not with the primary before", p.K, p.S)
	}
	if why := s.w.converge(1, 10*time.Second); why != "" { // the old primary streams, and is in the synchronous set
		return why
	}
	if g := s.w.newest(); g.Lease.Holder != op.To {
		return fmt.Sprintf("the primary is %s, not %s", g.Lease.Holder, op.To)
	}
	if why := s.w.writable(s.clients); why != "" {
		return why
	}
	if now := s.w.copies(); now > copies {
		return "a data directory was rewound or cloned"
	}
	if now := fails(s.clients); len(now) > len(before) {
		return fmt.Sprintf("clients saw errors: %v", now[len(before):])
	}
	return ""
}

func (w *World) copies() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.machines {
		n += m.server.copies
	}
	return n
}

func fails(clients []*client) (all []string) {
	clients[0].w.mu.Lock()
	defer clients[0].w.mu.Unlock()
	for _, c := range clients {
		all = append(all, c.fails...)
	}
	slices.Sort(all)
	return all
}

// strikes are the faults of TestSwitchoverPhases. Each is mended after a while.
var strikes = []struct {
	name string
	at   func(s *scene)
}{
	{"old primary's machine", func(s *scene) { s.powerCut(s.old, s.awhile()) }},
	{"old primary's agent", func(s *scene) { s.crashAgent(s.old) }},
	{"old primary's sentinel", func(s *scene) { s.killSentinel(s.old) }},
	{"old primary's postmaster", func(s *scene) { s.killPostgres(s.old) }},
	{"candidate's machine", func(s *scene) { s.powerCut(s.to, s.awhile()) }},
	{"candidate's postmaster", func(s *scene) { s.killPostgres(s.to) }},
	{"candidate's agent", func(s *scene) { s.crashAgent(s.to) }},
	{"leader's agent", func(s *scene) { s.crashAgent(s.w.leader()) }},
	{"leader's machine", func(s *scene) { s.powerCut(s.w.leader(), s.awhile()) }},
	{"network of old primary", func(s *scene) { s.cutOff(s.old) }},
	{"network of candidate", func(s *scene) { s.cutOff(s.to) }},
	{"stream to candidate lags", func(s *scene) { s.laggard(s.old, s.to) }},
	{"candidate stands still", func(s *scene) { s.freezeMachine(s.to) }},
	{"old primary stands still", func(s *scene) { s.freezeMachine(s.old) }},
}

// TestSwitchoverPhases strikes when any node's state first shows a phase, or a moment later.
func TestSwitchoverPhases(t *testing.T) {
	plays := []struct {
		kind  string
		sizes []int
	}{{fsm.Switchover, []int{3}}, {fsm.Switchover, []int{2, 1}}, {fsm.Restart, []int{3}}, {fsm.Restart, []int{2, 1}}}
	for _, play := range plays {
		for _, phase := range []string{fsm.Check, fsm.Pause, fsm.Demote, fsm.Promote, fsm.Resume} {
			for _, strike := range strikes {
				for seed := range manySeeds(2) {
					t.Run(fmt.Sprintf("%s/%v/%s/%s/%d", play.kind, play.sizes, phase, strike.name, seed), func(t *testing.T) {
						act(t, uint64(seed), play.sizes, func(s *scene) string {
							wait := time.Duration(0)
							if seed > 0 {
								wait = s.w.draw(0, 400*time.Millisecond)
							}
							return s.struck(s.operation(play.kind, true), phase, wait, strike.at)
						})
					})
				}
			}
		}
	}
}

func (s *scene) struck(op fsm.Operation, phase string, wait time.Duration, strike func(s *scene)) string {
	w, hit := s.w, s.onPhase(0, phase)
	s.pending.Go(func() {
		select {
		case <-hit:
			_ = pause(s.ctx, wait)
			strike(s)
		case <-s.ctx.Done():
		}
	})
	if err := s.submit(s.old, 0, op); err != nil {
		return "refused: " + err.Error()
	}
	select {
	case <-hit:
	case <-time.After(20 * time.Second):
		return "never reached phase " + phase
	}
	done := s.over(40 * time.Second)
	if done == nil || done.Outcome == "" {
		return fmt.Sprintf("the operation is not over: %+v", done)
	}
	w.note("outcome, done %t: %s", done.Done, done.Outcome)
	return ""
}
