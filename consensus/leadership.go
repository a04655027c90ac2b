package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"matriarch/fsm"
)

const (
	barrierTimeout  = 10 * time.Second
	leadAgain       = 50 * time.Millisecond // after a term that ended without another leader
	handOverTimeout = 3 * time.Second
	leaseSettle     = 10 * time.Second // leadership is not moved so soon after a lease changed
	moveEvery       = 30 * time.Second
	stewardEvery    = time.Second
)

// Leadership is what the conductor may do while this node leads in one term. It is useless afterwards, and harmless.
type Leadership struct {
	Term uint64
	t    *term
}

// Propose appends a command in this term only, and answers what became of it. Errors: ErrNoLeader (not done) and
// ErrUnknownOutcome (perhaps done).
func (l Leadership) Propose(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	data, err := l.t.n.wrap(c, "")
	if err != nil {
		return fsm.Result{}, fmt.Errorf("propose %s: %w", c.Kind(), err)
	}
	a, err := l.t.propose(ctx, data)
	if err != nil {
		return fsm.Result{}, fmt.Errorf("propose %s: %w", c.Kind(), noLeader(err))
	}
	return a.Result, nil
}

// Read returns a state that includes everything committed when it was called, and proves that this term still leads.
func (l Leadership) Read(ctx context.Context) (*fsm.State, error) {
	a, err := l.t.propose(ctx, encode(fsm.Tick{}))
	if err != nil {
		return nil, fmt.Errorf("read the newest state: %w", noLeader(err))
	}
	return a.State, nil
}

func noLeader(err error) error {
	if errors.Is(err, errNotLeading) && !errors.Is(err, ErrUnknownOutcome) {
		return fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	return err
}

// State is the newest state applied here.
func (l Leadership) State() *fsm.State { return l.t.n.State() }

// Heard tells how long ago a node's last keepalive came. ok is false when none has come in this term; then ago counts from the
// beginning of the term, since an earlier leader may have had them.
func (l Leadership) Heard(id fsm.NodeID) (ago time.Duration, ok bool) {
	h, ok := l.Live(id)
	if !ok {
		return time.Since(l.t.ready), false
	}
	return time.Since(h.At), true
}

// Live is a node's last keepalive of this term, which is newer than the replicated report.
func (l Leadership) Live(id fsm.NodeID) (Heard, bool) {
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	h, ok := l.t.heard[id]
	return h, ok
}

// leadership leads whenever Raft says so. Its channel keeps the last value only and may show a loss and a gain as one, so it is
// merely a reason to look, and terms are compared.
func (n *Node) leadership(ctx context.Context, rf *raft.Raft) {
	for {
		again := time.Hour
		if rf.State() == raft.Leader {
			n.lead(ctx, rf, rf.CurrentTerm())
			again = leadAgain
		}
		t := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-rf.LeaderCh():
		case <-t.C:
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// lead serves one term and returns when nothing of it runs any more.
func (n *Node) lead(ctx context.Context, rf *raft.Raft, number uint64) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	still := func() bool { return rf.State() == raft.Leader && rf.CurrentTerm() == number }
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	begun := make(chan *term, 1)
	wg.Go(func() { begun <- n.begin(rf, number, still) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-rf.LeaderCh():
			if !still() {
				return
			}
		case t := <-begun:
			if t == nil {
				return
			}
			n.cfg.Log.Info("this node leads", "term", number)
			defer n.cfg.Log.Info("this node leads no more", "term", number)
			n.term.Store(t)
			defer n.term.Store(nil)
			wg.Go(func() { t.run(ctx) })
			wg.Go(func() { n.steward(ctx, t) })
			if n.cfg.Lead != nil {
				wg.Go(func() { n.cfg.Lead(ctx, Leadership{Term: number, t: t}) })
			}
		}
	}
}

// begin passes the Barrier: from then on the state here includes everything that was committed before the term. It returns nil
// when the term is over.
func (n *Node) begin(rf *raft.Raft, number uint64, still func() bool) *term {
	if err := rf.Barrier(barrierTimeout).Error(); err != nil || !still() {
		if err != nil {
			n.cfg.Log.Debug("barrier not passed", "term", number, "error", err)
		}
		return nil
	}
	if s, inc := n.State(), n.cfg.Dialer.Identity.Incarnation(); s.Cluster.ID != "" && s.Cluster.Incarnation < inc {
		o := result(rf.ApplyLog(entry(encode(fsm.Recovered{Incarnation: inc}), number), barrierTimeout))
		if o.err != nil || !o.OK {
			n.cfg.Log.Warn("begin a new incarnation", "incarnation", inc, "reason", o.Reason, "error", o.err)
			return nil
		}
		n.cfg.Log.Warn("control plane rebuilt: a new incarnation begins", "incarnation", inc)
	}
	if !still() {
		return nil
	}
	return newTerm(n, rf, number)
}

// handOver gives leadership away before this node stops, so that nobody has to miss it first.
func (n *Node) handOver(rf *raft.Raft) {
	if rf.State() != raft.Leader || n.failure.Load() != nil {
		return
	}
	n.transfer(rf.LeadershipTransfer)
}

// transfer hands leadership over; what becomes of it shows by itself.
func (n *Node) transfer(begin func() raft.Future) {
	if err := n.handedOver(begin); err != nil {
		n.cfg.Log.Debug("leadership not handed over", "error", err)
	}
}

// handedOver waits a bounded time: a leader that cannot commit can hand nothing over.
func (n *Node) handedOver(begin func() raft.Future) error {
	n.net.leaving.Store(true)
	defer n.net.leaving.Store(false)
	n.store.written.more.fire()
	done := make(chan error, 1)
	go func() { done <- begin().Error() }()
	t := time.NewTimer(handOverTimeout)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return fmt.Errorf("not done within %s", handOverTimeout)
	}
}
