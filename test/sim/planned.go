package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/conductor"
)

// planner is the part of planned work that looks at servers and makes clients wait, on the model.
type planner struct{ p *process }

var _ conductor.Planner = planner{}

func (pl planner) begin(ctx context.Context, most time.Duration) error {
	w := pl.p.m.w
	pl.p.gate.pass()
	if err := pause(ctx, w.draw(time.Millisecond, most)); err != nil {
		return err
	}
	pl.p.gate.pass()
	if w.chance(w.refusals) {
		return errors.New("a transaction is in the way")
	}
	return nil
}

func (pl planner) Check(ctx context.Context, _ uint64, s *fsm.State, g fsm.Group) (fsm.NodeID, error) {
	if err := pl.begin(ctx, 500*time.Millisecond); err != nil {
		return "", err
	}
	if g.Op.Kind == fsm.Restart {
		return g.Op.To, nil
	}
	lead := pl.p.lead.Load()
	for {
		heard := map[fsm.NodeID]time.Duration{}
		young := false // this leader may not have heard everybody who lives
		for _, n := range s.Members(g.ID) {
			ago, ok := lead.Heard(n.ID)
			if ok {
				heard[n.ID] = ago
			}
			young = young || !ok && ago < decide.AliveWithin
		}
		to, err := decide.Fit(s, g, g.Op.To, heard)
		if err == nil || !young || pause(ctx, 50*time.Millisecond) != nil {
			return to, err
		}
		pl.p.gate.pass()
	}
}

// Pause stands in front of the group's clients, and waits for what is under way.
func (pl planner) Pause(ctx context.Context, _ uint64, _ *fsm.State, g fsm.Group) (conductor.Pause, error) {
	if err := pl.begin(ctx, 100*time.Millisecond); err != nil {
		return nil, err
	}
	w := pl.p.m.w
	h := &held{p: pl.p, g: g.ID, over: make(chan struct{}), lost: make(chan struct{}), heard: time.Now()}
	w.mu.Lock()
	truth := w.group(g.ID)
	if truth.held != nil {
		truth.held.end(true) // of an earlier leader
	}
	truth.held = h
	w.noteLocked("%s: clients of group %d wait", pl.p.m.name, g.ID)
	w.mu.Unlock()
	w.background.Go(h.ping)
	w.background.Go(h.guard)
	for limit := time.Now().Add(lockLimit); ; {
		w.mu.Lock()
		under, over := truth.asking, h.ended
		w.mu.Unlock()
		switch {
		case over:
			return nil, errors.New("the pause is lost")
		case under == 0:
			return h, nil
		case time.Now().After(limit):
			h.Cancel()
			return nil, errors.New("statements do not end")
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			h.Cancel()
			return nil, err
		}
	}
}

const (
	lockLimit = time.Second
	pingEvery = 400 * time.Millisecond
	deadMan   = 2 * time.Second // clients go on when their process has been silent for so long
)

// held is clients waiting. Guarded by World.mu.
type held struct {
	p     *process
	g     fsm.GroupID
	heard time.Time
	ended bool
	over  chan struct{}
	lost  chan struct{}
}

// end lets clients go on. The mutex is held.
func (h *held) end(lost bool) {
	if h.ended {
		return
	}
	h.ended = true
	close(h.over)
	w := h.p.m.w
	if lost {
		close(h.lost)
	}
	if truth := w.group(h.g); truth.held == h {
		truth.held = nil
	}
	w.noteLocked("%s: clients of group %d go on, lost: %t", h.p.m.name, h.g, lost)
}

// ping is the process's part of the dead man's switch, guard the servers'.
func (h *held) ping() {
	w := h.p.m.w
	for {
		h.p.gate.pass()
		w.mu.Lock()
		ended := h.ended
		if h.p.ctx.Err() == nil {
			h.heard = time.Now()
		}
		w.mu.Unlock()
		if ended || pause(h.p.ctx, pingEvery) != nil {
			return
		}
	}
}

func (h *held) guard() {
	w := h.p.m.w
	for pause(w.ctx, pingEvery/4) == nil {
		w.mu.Lock()
		if time.Since(h.heard) > deadMan {
			h.end(true)
		}
		ended := h.ended
		w.mu.Unlock()
		if ended {
			return
		}
	}
}

// Ended implements conductor.Pause.
func (h *held) Ended() []string { return nil }

func (h *held) Lost() <-chan struct{} { return h.lost }

func (h *held) Cancel() {
	h.p.gate.pass()
	w := h.p.m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	h.end(false)
}

// Resume makes clients look where the primary is now, and lets them go on.
func (h *held) Resume(ctx context.Context, s *fsm.State) error {
	h.p.gate.pass()
	w := h.p.m.w
	err := pause(ctx, w.draw(time.Millisecond, 30*time.Millisecond))
	h.p.gate.pass()
	w.mu.Lock()
	defer w.mu.Unlock()
	if h.ended {
		return errors.New("clients did not wait any more")
	}
	if n, ok := s.Primary(h.g); ok && err == nil {
		truth := w.group(h.g)
		truth.row, truth.rows = w.byID(n.ID), truth.rows+1
	}
	h.end(false)
	return err
}

// plan asks for planned work through any node, as an operator does who does not know what breaks meanwhile.
func (n *nemesis) plan(id fsm.GroupID) {
	w := n.w
	_, standbys := n.cast(id)
	op := fsm.Operation{Kind: fsm.Switchover, By: "nemesis", At: time.Now()}
	switch dice := w.draw(0, 9); {
	case dice < 3:
		op.Kind = fsm.Restart
	case dice < 6 && len(standbys) > 0:
		op.To = standbys[0].id
	}
	if w.chance(0.25) {
		op.Due = time.Now().Add(w.draw(0, 3*time.Second))
	}
	n.pending.Go(func() { _ = n.submit(n.any(), id, op) })
}

// submit puts an operation into the state through a node.
func (n *nemesis) submit(via *machine, id fsm.GroupID, op fsm.Operation) error {
	w := n.w
	w.mu.Lock()
	w.lastID++
	op.ID = fmt.Sprint("op", w.lastID)
	p := via.agent
	w.noteLocked("%s of group %d to %q asked for through %s, due %t", op.Kind, id, op.To, via.name, !op.Due.IsZero())
	w.mu.Unlock()
	if p == nil {
		return errors.New("no agent")
	}
	ctx, cancel := context.WithTimeout(n.ctx, 10*time.Second)
	defer cancel()
	res, err := control{p}.Submit(ctx, fsm.OperationPut{Group: id, Operation: op})
	if err == nil && !res.OK {
		err = errors.New(res.Reason)
	}
	w.note("%s %s: put: %v", op.Kind, op.ID, err)
	return err
}
