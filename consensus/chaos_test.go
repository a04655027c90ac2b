package consensus

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
)

// believers watches that never two nodes believe in a lease of one group at the same time.
type believers struct {
	t  *testing.T
	mu sync.Mutex
	of map[fsm.GroupID]map[fsm.NodeID]belief
}

type belief struct {
	epoch fsm.Epoch
	until time.Time
}

func (b *believers) extend(g fsm.GroupID, n fsm.NodeID, e fsm.Epoch, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of[g] == nil {
		b.of[g] = map[fsm.NodeID]belief{}
	}
	for other, o := range b.of[g] {
		if other != n && time.Now().Before(o.until) && time.Now().Before(until) {
			b.t.Errorf("group %d: %s holds %s until %s while %s holds %s until %s", g, n, e, until, other, o.epoch, o.until)
		}
	}
	b.of[g][n] = belief{e, until}
}

// agent holds whatever lease the state gives it, by the rules of a holder.
func (p *peer) agent(ctx context.Context, g fsm.GroupID, b *believers, started time.Time, rng *rand.Rand) {
	instance := fmt.Sprint("i", p.id, rng.Int())
	holder := lease.NewHolder(instance)
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		var e fsm.Epoch
		if l := p.State().Groups[g].Lease; l.Holder == p.id && l.Instance == instance {
			e = l.Epoch
		}
		now := time.Since(started)
		sent := lease.Stamp{Raw: now, Boot: now}
		a, err := p.beat(g, instance, e)
		wait = 100 * time.Millisecond
		if err != nil {
			continue
		}
		wait = a.NextIn
		if a.Held && holder.Answered(sent, instance, a.Lease.Epoch, a.Lease.TTL) {
			_, until, _ := holder.Until()
			b.extend(g, p.id, a.Lease.Epoch, started.Add(until.Raw))
		}
	}
}

// conduct grants every free lease to a random node that was heard of.
func conduct(rng func(int) int) func(context.Context, Leadership) {
	return func(ctx context.Context, l Leadership) {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			s := l.State()
			for _, g := range s.Groups {
				if g.Held() || g.SystemID == "" {
					continue
				}
				m := s.Members(g.ID)
				n := m[rng(len(m))]
				if h, ok := l.Live(n.ID); ok && time.Since(h.At) < time.Second {
					_, _ = l.Propose(ctx, fsm.GrantCmd{Group: g.ID, Prev: g.Epoch, Holder: n.ID, Instance: h.Instance, TTL: s.Cluster.Settings.TTL, Reason: "chaos"})
				}
			}
		}
	}
}

// Under cuts, freezes, crashes and hung disks no two nodes ever hold one lease at the same time, and when all is well again
// every group has a holder. CONSENSUS_SEED replays one seed, CONSENSUS_SEEDS runs so many.
func TestNeverTwoHolders(t *testing.T) {
	seeds := []uint64{1, 2, 3}
	if n, err := strconv.ParseUint(os.Getenv("CONSENSUS_SEEDS"), 10, 64); err == nil {
		seeds = nil
		for i := range n {
			seeds = append(seeds, 100+i)
		}
	}
	if n, err := strconv.ParseUint(os.Getenv("CONSENSUS_SEED"), 10, 64); err == nil {
		seeds = []uint64{n}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { bubble(t, func(t *testing.T, h *harness) { chaos(t, h, seed) }) })
	}
}

func chaos(t *testing.T, h *harness, seed uint64) {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, seed))
	pick := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(n)
	}
	h.lead, h.avoid = conduct(pick), true
	all := h.cluster(0, 0, 1, 1, 2)
	h.fake.Seed(seed)
	h.fake.SetDefaultDelay(time.Millisecond, 3*time.Millisecond)
	for i, g := range []fsm.GroupID{0, 1} {
		p := all[2*i]
		h.submit(all[0], fsm.Claim{Group: g, Node: p.id})
		h.submit(all[0], fsm.Initialised{Group: g, Node: p.id, SystemID: "sys", Timeline: 1})
	}
	b := &believers{t: t, of: map[fsm.GroupID]map[fsm.NodeID]belief{}}
	stops, groups := map[*peer]func(){}, map[*peer]fsm.GroupID{}
	for _, p := range all {
		groups[p] = p.State().Nodes[p.id].Group
	}
	start := func(p *peer) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		r := rand.New(rand.NewPCG(seed, uint64(pick(1<<30))))
		go func() { defer close(done); p.agent(ctx, groups[p], b, h.started, r) }()
		stops[p] = func() { cancel(); <-done }
	}
	for _, p := range all {
		start(p)
	}
	for range 25 {
		p, q := all[pick(5)], all[pick(5)]
		hold := time.Duration(100+pick(6000)) * time.Millisecond
		switch pick(6) {
		case 0:
			h.fake.Isolate(p.addr)
			time.Sleep(hold)
		case 1:
			h.fake.Cut(p.addr, q.addr)
			time.Sleep(hold)
		case 2:
			h.fake.Freeze(p.addr)
			time.Sleep(hold)
			h.fake.Thaw(p.addr)
		case 3:
			stops[p]()
			h.kill(p)
			time.Sleep(hold)
			h.restart(p)
			start(p)
		case 4:
			c := make(chan struct{})
			p.hang.Store(&c)
			time.Sleep(hold)
			p.hang.Store(nil)
			close(c)
		case 5:
			h.fake.Drop(p.addr, q.addr)
			time.Sleep(hold / 4)
		}
		if pick(2) == 0 {
			h.fake.HealAll()
		}
	}
	h.fake.HealAll()
	h.eventually(time.Minute, "every group has a holder that believes it", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, g := range []fsm.GroupID{0, 1} {
			ok := false
			for _, o := range b.of[g] {
				ok = ok || time.Now().Before(o.until)
			}
			if !ok {
				return false
			}
		}
		return true
	})
	for _, stop := range stops {
		stop()
	}
}
