package conductor

import (
	"context"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

const (
	probeLimit = 800 * time.Millisecond
	probeAgain = 250 * time.Millisecond
)

// probing is what the members of a group have said of its holder.
type probing struct {
	epoch  fsm.Epoch
	asked  time.Time
	asking int
	found  map[fsm.NodeID]found
}

type found struct {
	decide.Probe
	at time.Time
}

// sight is one answer.
type sight struct {
	group fsm.GroupID
	epoch fsm.Epoch
	node  fsm.NodeID
	p     decide.Probe
	err   error
}

// probe asks the witnesses at once.
func (t *term) probe(ctx context.Context, s *fsm.State, g fsm.Group, witnesses []fsm.NodeID) {
	pr := t.probes[g.ID]
	if pr == nil || pr.epoch != g.Epoch {
		pr = &probing{epoch: g.Epoch, found: map[fsm.NodeID]found{}}
		t.probes[g.ID] = pr
	}
	pr.asked = time.Now()
	holder := s.Nodes[g.Lease.Holder]
	for _, id := range witnesses {
		n := s.Nodes[id]
		pr.asking++
		t.wg.Go(func() {
			pctx, cancel := context.WithTimeout(ctx, probeLimit)
			defer cancel()
			p, err := t.cfg.Recruiter.Probe(pctx, n, holder)
			select {
			case t.seen <- sight{g.ID, g.Epoch, n.ID, p, err}:
			case <-ctx.Done():
			}
		})
	}
}

func (t *term) saw(x sight) {
	pr := t.probes[x.group]
	if pr == nil || pr.epoch != x.epoch {
		return
	}
	pr.asking--
	if x.err == nil {
		pr.found[x.node] = found{x.p, time.Now()}
	}
}

// probed gives the fresh answers about the present holder.
func (t *term) probed(g fsm.Group) (map[fsm.NodeID]decide.Probe, bool) {
	pr := t.probes[g.ID]
	if pr == nil || pr.epoch != g.Epoch {
		delete(t.probes, g.ID)
		return nil, false
	}
	out := map[fsm.NodeID]decide.Probe{}
	for id, f := range pr.found {
		if time.Since(f.at) < decide.ProbeFresh {
			out[id] = f.Probe
		}
	}
	return out, pr.asking > 0 || time.Since(pr.asked) < probeAgain
}
