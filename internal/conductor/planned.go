package conductor

import (
	"context"
	"strings"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// Planner does what a switchover or restart needs beside the lease. Its methods run outside the loop and end with ctx.
type Planner interface {
	// Check looks whether anything stands against the work and has dirty pages written out on both servers. It answers the
	// candidate: the one asked for, or the best. An error is the refusal, in an operator's words.
	Check(ctx context.Context, term uint64, s *fsm.State, g fsm.Group) (fsm.NodeID, error)
	// Pause makes the formation's clients wait. It answers nil where there is nothing to pause.
	Pause(ctx context.Context, term uint64, s *fsm.State, g fsm.Group) (Pause, error)
}

// Pause is clients waiting.
type Pause interface {
	// Resume puts the rows of pg_dist_node right by this state and lets clients go on, in any case.
	Resume(ctx context.Context, s *fsm.State) error
	// Cancel lets them go on with the rows as they are. It may be called at any time, and again.
	Cancel()
	// Lost is closed when clients go on although nobody let them.
	Lost() <-chan struct{}
	// Ended says which transactions were ended because they stood in the way.
	Ended() []string
}

const (
	workLimit   = 3 * time.Minute // of one phase; the rules give up sooner
	resumeLimit = 5 * time.Second
	// maxPause ends a pause whose operation takes too long: clients had better see an error than wait for ever.
	maxPause = 20 * time.Second
)

// work is the leader's part in one operation.
type work struct {
	op, phase string
	began     time.Time // of the phase, as this leader saw it
	busy      bool
	ready     bool
	refused   string
	fit       fsm.NodeID
	steps     []fsm.Step // over, not in the state yet
	told      string     // the phase whose step is in the state already, or on its way
	pause     Pause
	pausedAt  time.Time
	paused    time.Duration // once it is over
	ended     []string
}

// worked is how a phase's work ended.
type worked struct {
	group     fsm.GroupID
	op, phase string
	fit       fsm.NodeID
	pause     Pause
	err       error
}

// track follows the group's operation: what belongs to a phase that is over is forgotten, and a pause without its operation ends.
func (t *term) track(g fsm.Group) *work {
	w := t.works[g.ID]
	if w != nil && (!g.Op.Pausing() || g.Op.ID != w.op) {
		t.letGo(w)
		delete(t.works, g.ID)
		w = nil
	}
	if !g.Op.Pausing() {
		return nil
	}
	if w == nil {
		w = &work{op: g.Op.ID, phase: g.Op.Phase, began: time.Now()}
		t.works[g.ID] = w
	}
	if w.phase != g.Op.Phase {
		if w.told != w.phase {
			w.steps = append(w.steps, fsm.Step{Phase: w.phase, Took: time.Since(w.began).Milliseconds()})
		}
		w.phase, w.began, w.busy, w.ready, w.refused = g.Op.Phase, time.Now(), false, false, ""
	}
	if w.pause != nil && (lost(w.pause) || time.Since(w.pausedAt) > maxPause) {
		t.cfg.Log.Warn("the pause ended before the operation: clients may see errors", "group", int(g.ID), "after", time.Since(w.pausedAt).String())
		t.letGo(w)
	}
	return w
}

func lost(p Pause) bool {
	select {
	case <-p.Lost():
		return true
	default:
		return false
	}
}

// letGo ends the pause, if there is one.
func (t *term) letGo(w *work) {
	if w.pause == nil {
		return
	}
	p := w.pause
	w.pause, w.paused = nil, time.Since(w.pausedAt)
	t.wg.Go(p.Cancel)
	t.pausing.Store(false)
}

func (w *work) view() decide.Work {
	if w == nil {
		return decide.Work{}
	}
	v := decide.Work{Phase: w.phase, For: time.Since(w.began), Busy: w.busy, Ready: w.ready, Refused: w.refused, Fit: w.fit, Paused: w.paused, Ended: w.ended}
	if w.pause != nil {
		v.Paused = time.Since(w.pausedAt)
	}
	return v
}

// begin starts the work of a phase.
func (t *term) begin(ctx context.Context, s *fsm.State, g fsm.Group, phase string) {
	w := t.works[g.ID]
	if w == nil || w.busy {
		return
	}
	pl, term, p := t.cfg.Planner, t.lead.Term(), w.pause
	end := worked{group: g.ID, op: w.op, phase: phase}
	if pl == nil {
		end.fit = g.Op.To
		t.took(end)
		return
	}
	w.busy = true
	t.wg.Go(func() {
		wctx, cancel := context.WithTimeout(ctx, workLimit+g.Op.WaitMoves)
		defer cancel()
		switch phase {
		case fsm.Check:
			end.fit, end.err = pl.Check(wctx, term, s, g)
		case fsm.Pause:
			end.pause, end.err = pl.Pause(wctx, term, s, g)
		case fsm.Resume:
			if p != nil {
				rctx, cancel := context.WithTimeout(wctx, resumeLimit)
				end.err = p.Resume(rctx, s)
				cancel()
			}
		}
		select {
		case t.results <- end:
		case <-ctx.Done():
			if end.pause != nil {
				end.pause.Cancel()
			}
		}
	})
}

// took takes the outcome of a phase's work.
func (t *term) took(r worked) {
	w := t.works[r.group]
	if w == nil || w.op != r.op || w.phase != r.phase {
		if r.pause != nil { // the operation ended meanwhile
			t.wg.Go(r.pause.Cancel)
		}
		return
	}
	w.busy, w.ready = false, r.err == nil
	if r.err != nil {
		w.refused = strings.Join(strings.Fields(r.err.Error()), " ") // one line, whatever a library says
	}
	nudge(t.wake)
	if r.fit != "" {
		w.fit = r.fit
	}
	if r.pause != nil {
		w.pause, w.pausedAt, w.ended = r.pause, time.Now(), r.pause.Ended()
		t.pausing.Store(true)
	}
	if r.phase == fsm.Resume && w.pause != nil {
		w.paused, w.pause = time.Since(w.pausedAt), nil
		t.pausing.Store(false)
		nudge(t.meta)
	}
}

// move proposes the next phase, with the times of those that are over.
func (t *term) move(ctx context.Context, g fsm.Group, a decide.MoveOperation) {
	m := fsm.OperationMove{Group: g.ID, ID: a.ID, From: a.From, To: a.To, Node: a.Node, Text: a.Text}
	if w := t.works[g.ID]; w != nil && w.op == a.ID {
		m.Steps = append(w.steps, fsm.Step{Phase: w.phase, Took: time.Since(w.began).Milliseconds()})
		m.PausedMS = w.paused.Milliseconds()
		w.steps, w.told = nil, w.phase
	}
	t.commit(ctx, m)
}

// endWork lets everybody go when the leadership ends: the next leader begins the phase anew.
func (t *term) endWork() {
	for _, w := range t.works {
		t.letGo(w)
	}
}
