package sim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// TestSeeds runs MATRIARCH_SIM_SEEDS seeds (200; with -short 20) from MATRIARCH_SIM_FROM (0) on, each in a bubble of its own, or the one of MATRIARCH_SIM_SEED with its
// whole trace.
func TestSeeds(t *testing.T) {
	if one := os.Getenv("MATRIARCH_SIM_SEED"); one != "" {
		seed, err := strconv.ParseUint(one, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		bubble(t, seed, true)
		return
	}
	seeds := 200
	if testing.Short() {
		seeds = 20
	}
	if s := os.Getenv("MATRIARCH_SIM_SEEDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		seeds = n
	}
	from := 0
	if s := os.Getenv("MATRIARCH_SIM_FROM"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		from = n
	}
	for seed := from; seed < from+seeds; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			bubble(t, uint64(seed), false)
		})
	}
}

func bubble(t *testing.T, seed uint64, verbose bool) {
	dir := scratch(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		w, err := newWorld(ctx, seed, dir)
		if err != nil {
			t.Fatal(err)
		}
		why := w.live(ctx, cancel)
		if why != "" || verbose {
			keepTrace(t, w, why)
		}
		if why != "" {
			t.Errorf("seed %d: %s\nreplay: MATRIARCH_SIM_SEED=%d go test -tags hashicorpmetrics -run TestSeeds -v ./test/sim", seed, why, seed)
		}
	})
}

// scratch is in memory where that can be had: the logs are small and written often.
func scratch(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "matriarch-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func keepTrace(t *testing.T, w *World, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := filepath.Join(t.ArtifactDir(), fmt.Sprintf("seed-%d.log", w.seed))
	_ = os.WriteFile(name, []byte(strings.Join(w.lines, "\n")+"\n"), 0o600)
	tail := w.lines
	if why != "" && os.Getenv("MATRIARCH_SIM_SEED") == "" {
		tail = tail[max(0, len(tail)-40):]
	}
	for _, l := range tail {
		t.Log(l)
	}
	t.Logf("trace: %s", name)
}

// live is one cluster's life: formation, faults, healing. It returns what went wrong.
func (w *World) live(ctx context.Context, cancel context.CancelFunc) (why string) {
	defer func() {
		w.stop(cancel)
		if why == "" {
			why = w.violated()
		}
	}()
	w.liars, w.early = w.seed%5 == 4, w.seed%2 == 0
	w.refusals, w.hangs = 0.05, 0.1
	w.sickly = w.seed%7 == 3
	groups := []int{3}
	if w.seed%8 == 7 {
		groups = []int{3, 2}
	}
	if err := w.form(ctx, groups); err != nil {
		return err.Error()
	}
	if why := w.converge(len(groups), 60*time.Second); why != "" {
		return "formation: " + why
	}
	w.note("formed")
	clients := w.startClients(ctx, len(groups))
	for round := range 2 {
		n := &nemesis{w: w, ctx: ctx, busy: map[*machine]string{}}
		n.run(24 * time.Second)
		if why := w.violated(); why != "" {
			return why
		}
		if why := w.converge(len(groups), 120*time.Second); why != "" {
			return fmt.Sprintf("round %d: does not converge: %s", round, why)
		}
		if why := w.writable(clients); why != "" {
			return why
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.groups {
		for _, m := range w.machines {
			if p := m.server.proc; p != nil && p.primary && m.group == g.id {
				w.judgeHistory(p, "at the end", everyEpoch)
			}
		}
		w.noteLocked("group %d: %d acknowledged, opened %d times", m0(g), len(g.acked), g.opened)
	}
	return w.broken
}

// form makes the machines and joins them to the first.
func (w *World) form(ctx context.Context, groups []int) error {
	w.mu.Lock()
	var machines []*machine
	for g, n := range groups {
		for range n {
			m, err := w.addMachine(fsm.GroupID(g))
			if err != nil {
				w.mu.Unlock()
				return err
			}
			machines = append(machines, m)
		}
	}
	w.mu.Unlock()
	settings := fsm.DefaultSettings()
	settings.Citus = false
	if w.sickly {
		settings.SickCooldown = 15 * time.Second
	}
	first := machines[0]
	err := first.startAgent(&fsm.Bootstrap{
		ClusterID: clusterID, Incarnation: 1, Settings: settings, Node: first.node(), Token: &fsm.Token{ID: "t", Uses: len(machines) + 2},
	})
	if err != nil {
		return err
	}
	for _, m := range machines[1:] {
		sctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		res, err := first.agent.node.Submit(sctx, fsm.Join{Node: m.node(), Token: "t"})
		cancel()
		if err != nil || !res.OK {
			return fmt.Errorf("join %s: %s %w", m.name, res.Reason, err)
		}
		if err := m.startAgent(nil); err != nil {
			return err
		}
	}
	for g := range groups {
		w.mu.Lock()
		c := fsm.GroupSet{Group: fsm.GroupID(g), Mode: fsm.Quorum, Early: &w.early, Strict: new(false), SyncCount: new(max(w.confirm, 1)), SyncLag: new(int64(0))}
		if !w.plain {
			c = w.vary(c.Group)
		}
		w.mu.Unlock()
		if w.seed%4 == 1 { // seeds of early failover and of the lease alone are among the others
			c.Failsafe = new(true)
		}
		if err := w.set(ctx, first, c); err != nil {
			return err
		}
	}
	return nil
}

// converge waits until every group has an open primary, all members stream, and the synchronous set is whole.
func (w *World) converge(groups int, within time.Duration) (why string) {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		time.Sleep(200 * time.Millisecond)
		if why = w.unwell(groups); why == "" || w.violated() != "" {
			return ""
		}
	}
	return why
}

func (w *World) unwell(groups int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for g := range groups {
		id := fsm.GroupID(g)
		var newest *fsm.State
		for _, m := range w.machines {
			if m.agent == nil {
				return m.name + " has no agent"
			}
			if s := m.agent.node.State(); newest == nil || s.Index > newest.Index {
				newest = s
			}
		}
		st := newest.Groups[id]
		if !st.Opened() || st.Sync.Joint() {
			return fmt.Sprintf("group %d is not open: %+v", g, st.Lease)
		}
		if st.Op != nil || st.Planned != nil {
			return fmt.Sprintf("group %d has planned work left: %+v %+v", g, st.Op, st.Planned)
		}
		for _, m := range w.machines {
			p := m.server.proc
			switch {
			case m.group != id:
			case p == nil:
				return m.name + " does not run"
			case m.id == st.Lease.Holder && (!p.primary || p.conf.Phase != decide.Open):
				return m.name + " is the holder, but not open"
			case m.id == st.Lease.Holder:
			case p.receiver == nil || !p.receiver.streaming:
				return m.name + " does not stream"
			case st.Mode != fsm.Off && !m.tags.NoSync && !st.Sync.Target().Has(m.id):
				return m.name + " is not in the synchronous set"
			}
		}
	}
	return ""
}

// writable waits until each client has an acknowledgement.
func (w *World) writable(clients []*client) string {
	since := time.Now()
	for time.Since(since) < 20*time.Second {
		time.Sleep(100 * time.Millisecond)
		w.mu.Lock()
		all := !slices.ContainsFunc(clients, func(c *client) bool { return !c.last.After(since) })
		w.mu.Unlock()
		if all {
			return ""
		}
	}
	return "no write is acknowledged after the faults"
}

// stop ends everything in the bubble.
func (w *World) stop(cancel context.CancelFunc) {
	for _, m := range w.machines {
		w.mu.Lock()
		m.frozen = false
		m.diskBack()
		if m.sentinel != nil {
			m.sentinel.thaw()
		}
		if p := m.server.proc; p != nil {
			p.cond.Broadcast()
		}
		a := m.agent
		w.mu.Unlock()
		if a != nil {
			a.gate.open()
			a.slow.open()
			a.disk.open()
		}
	}
	w.net.HealAll()
	cancel()
	for _, m := range w.machines {
		w.mu.Lock()
		if p := m.server.proc; p != nil {
			p.kill("the simulation ends")
		}
		w.mu.Unlock()
		w.net.Kill(m.host)
		w.net.Kill(m.pgHost)
		w.net.Thaw(m.host)
		w.net.Thaw(m.pgHost)
	}
	for _, h := range []string{"c0", "r0", "c1", "r1"} {
		w.net.Kill(h)
	}
	w.background.Wait()
	time.Sleep(10 * time.Second) // the gossip library's last probes run into their time limits
}
