package consensus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"matriarch/consensus/lease"
	"matriarch/fsm"
)

const (
	tickWindow     = 5 * time.Millisecond  // keepalives this close together share an entry
	enqueueTimeout = time.Second           // for Raft's main goroutine to take an entry
	lsnEvery       = 5 * time.Second       // how often a report is replicated in which only positions moved
	expireAgain    = 50 * time.Millisecond // between looks at leases whose Expire is under way, and after one that failed
)

// Keepalive is what every node sends to the leader on the grid that the answers give it.
type Keepalive struct {
	Node     fsm.NodeID  `json:"node"`
	Instance string      `json:"instance"` // of the node's sentinel
	Group    fsm.GroupID `json:"group"`
	Epoch    fsm.Epoch   `json:"epoch"` // of the lease to renew; zero: none
	Report   fsm.Report  `json:"report"`
}

// KeepaliveAnswer is the state right after the keepalive's own log entry, which is committed.
type KeepaliveAnswer struct {
	Held    bool          `json:"held"`  // the asked epoch is held by this node and instance, and not revoked
	Lease   fsm.Lease     `json:"lease"` // of the group; its TTL is the one to count with
	Index   uint64        `json:"index"`
	NextIn  time.Duration `json:"next_in"`           // until the next keepalive is welcome
	Removed bool          `json:"removed"`           // the node was taken out of the cluster for good
	Unknown bool          `json:"unknown"`           // the node is not, or not yet, in the state
	Present []fsm.NodeID  `json:"present,omitempty"` // members of the group whose keepalives came lately
	Term    uint64        `json:"term"`
	Time    time.Time     `json:"time"` // of the leader's wall clock, for people
}

// term is one leadership, from its Barrier on. Its loop is the one goroutine that appends entries, and owns the Lessor.
type term struct {
	n      *Node
	number uint64
	rf     *raft.Raft
	ready  time.Time
	slow   slowest

	beats     chan beat
	proposals chan proposal
	settled   chan settled
	done      chan struct{} // closed when the loop has ended and every entry's outcome is known

	// Below: owned by the loop.
	lessor   *lease.Lessor
	batch    []beat
	seq      uint64                    // entries appended
	expiring map[fsm.GroupID]time.Time // whose Expire is under way: no time; or failed: when to try again
	firsts   map[fsm.GroupID]fsm.Epoch // whose first keepalive has come
	lsnAt    map[fsm.NodeID]time.Time  // when a report with mere positions was last replicated

	mu    sync.Mutex
	heard map[fsm.NodeID]Heard
}

// Heard is the last keepalive of a node.
type Heard struct {
	At       time.Time
	Instance string
	Epoch    fsm.Epoch
	Report   fsm.Report
}

type beat struct {
	Keepalive
	received lease.Stamp
	reply    chan outcome
}

type proposal struct {
	data  []byte
	reply chan outcome
}

type outcome struct {
	fsm.Applied
	err error
}

// settled tells the loop that an entry's outcome is known.
type settled struct {
	seq    uint64
	nudge  bool         // the followers wait for it
	expire *fsm.GroupID // it was this group's Expire
	failed bool
}

func newTerm(n *Node, rf *raft.Raft, number uint64) *term {
	return &term{
		n: n, number: number, rf: rf, ready: time.Now(),
		beats: make(chan beat), proposals: make(chan proposal), settled: make(chan settled), done: make(chan struct{}),
		lessor: lease.NewLessor(n.cfg.Clock(), n.State()), expiring: map[fsm.GroupID]time.Time{}, firsts: map[fsm.GroupID]fsm.Epoch{},
		lsnAt: map[fsm.NodeID]time.Time{}, heard: map[fsm.NodeID]Heard{},
	}
}

// run is the loop. Once ctx ends it takes nothing more and waits for the entries under way, which Raft settles when it steps
// down or commits.
func (t *term) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer close(t.done)
	defer wg.Wait()
	window := time.NewTimer(time.Hour)
	defer window.Stop()
	for {
		expiry := time.NewTimer(t.expire(ctx, &wg))
		select {
		case <-ctx.Done():
			expiry.Stop()
			return
		case b := <-t.beats:
			t.batch = append(t.batch, b)
			switch {
			case t.first(b): // a Grant is worth nothing before it
				t.tick(ctx, &wg)
			case len(t.batch) == 1:
				window.Reset(tickWindow)
			}
		case <-window.C:
			if len(t.batch) > 0 {
				t.tick(ctx, &wg)
			}
		case p := <-t.proposals:
			t.append(ctx, &wg, p.data, settled{nudge: true}, func(o outcome) { p.reply <- o })
		case s := <-t.settled:
			switch {
			case s.expire != nil && s.failed: // Raft refuses everything at once while leadership is being handed over
				t.expiring[*s.expire] = time.Now().Add(expireAgain)
			case s.expire != nil:
				delete(t.expiring, *s.expire)
			}
			// Followers learn what is committed from the next message: unless one is about to go, an empty tick is it.
			if s.nudge && s.seq == t.seq && len(t.batch) == 0 {
				t.append(ctx, &wg, encode(fsm.Tick{}), settled{}, func(outcome) {})
			}
		case <-expiry.C:
		}
		expiry.Stop()
	}
}

// first reports whether this is an epoch's first keepalive to this leader.
func (t *term) first(b beat) bool {
	g, ok := t.n.State().Groups[b.Group]
	if !ok || b.Epoch.IsZero() || g.Lease.Epoch != b.Epoch || g.Lease.Holder != b.Node || t.firsts[b.Group] == b.Epoch {
		return false
	}
	t.firsts[b.Group] = b.Epoch
	return true
}

// append hands an entry to Raft. The outcome reaches then, by another goroutine, and after it the loop.
func (t *term) append(ctx context.Context, wg *sync.WaitGroup, data []byte, s settled, then func(outcome)) {
	t.seq++
	s.seq = t.seq
	began := time.Now()
	future := t.rf.ApplyLog(entry(data, t.number), enqueueTimeout)
	wg.Go(func() {
		o := result(future)
		t.slow.note(time.Since(began))
		if t.n.cfg.OnTick != nil {
			t.n.cfg.OnTick(time.Since(began))
		}
		then(o)
		s.failed = o.err != nil
		select {
		case t.settled <- s:
		case <-ctx.Done():
		}
	})
}

// result waits for an entry's outcome.
func result(f raft.ApplyFuture) outcome {
	if err := f.Error(); err != nil {
		switch {
		case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
			return outcome{err: fmt.Errorf("%w: %w", errNotLeading, err)}
		}
		return outcome{err: fmt.Errorf("%w: %w", ErrUnknownOutcome, err)}
	}
	switch r := f.Response().(type) {
	case fsm.Applied:
		if r.Fatal { // this node has stopped following the log: its state says nothing any more
			return outcome{err: fmt.Errorf("%w: %s", ErrUnknownOutcome, r.Reason)}
		}
		return outcome{Applied: r}
	case error:
		return outcome{err: fmt.Errorf("%w: %w", errNotLeading, r)}
	}
	return outcome{err: fmt.Errorf("%w: the entry has no answer", ErrUnknownOutcome)}
}

// tick appends one entry for all keepalives of the window. Their deadlines move now: too late a deadline is always safe.
func (t *term) tick(ctx context.Context, wg *sync.WaitGroup) {
	s, batch := t.n.State(), t.batch
	t.batch = nil
	t.lessor.Applied(t.n.cfg.Clock(), s)
	reports := map[fsm.NodeID]fsm.Report{}
	for _, b := range batch {
		b.Report = fsm.Known(b.Report, s.Cluster.Gate)
		if g, ok := s.Groups[b.Group]; ok && g.Lease.Holder == b.Node {
			t.lessor.Enter(b.received, g, b.Epoch, b.Instance)
		}
		if t.worth(s, b) {
			reports[b.Node] = b.Report
			t.lsnAt[b.Node] = time.Now()
		}
	}
	t.append(ctx, wg, encode(fsm.Tick{Reports: reports}), settled{}, func(o outcome) {
		for _, b := range batch {
			b.reply <- o
		}
	})
}

// worth tells whether a report is replicated: at once when something changed, now and then when only positions moved.
func (t *term) worth(s *fsm.State, b beat) bool {
	n, known := s.Nodes[b.Node]
	switch r := n.Report; {
	case !known:
		return false
	case !b.Report.SameButLSN(r):
		return true
	case b.Report.Receive == r.Receive && b.Report.Replay == r.Replay:
		return false
	}
	return time.Since(t.lsnAt[b.Node]) >= lsnEvery
}

// expire proposes the end of every lease whose deadline has passed, and says when to look again.
func (t *term) expire(ctx context.Context, wg *sync.WaitGroup) time.Duration {
	now := t.n.cfg.Clock()
	t.lessor.Applied(now, t.n.State())
	maps.DeleteFunc(t.expiring, func(_ fsm.GroupID, again time.Time) bool { return !again.IsZero() && time.Until(again) <= 0 })
	for _, e := range t.lessor.Expired(now) {
		if _, waits := t.expiring[e.Group]; waits {
			continue
		}
		t.expiring[e.Group] = time.Time{}
		t.n.cfg.Log.Warn("lease expires: its holder was not heard of", "group", e.Group, "epoch", e.Epoch.String())
		t.append(ctx, wg, encode(e), settled{nudge: true, expire: &e.Group}, func(outcome) {})
	}
	wait, ok := t.lessor.Next(now)
	switch {
	case !ok:
		return time.Second
	case len(t.expiring) > 0:
		return max(wait, expireAgain)
	}
	return max(wait, time.Millisecond)
}

// keepalive enters the next tick and waits for its answer.
func (t *term) keepalive(ctx context.Context, k Keepalive) (KeepaliveAnswer, error) {
	b := beat{Keepalive: k, received: t.n.cfg.Clock(), reply: make(chan outcome, 1)}
	t.mu.Lock()
	t.heard[k.Node] = Heard{At: time.Now(), Instance: k.Instance, Epoch: k.Epoch, Report: k.Report}
	t.mu.Unlock()
	o, err := ask(ctx, t, t.beats, b, b.reply)
	if err != nil {
		return KeepaliveAnswer{}, err
	}
	return t.answer(b, o.State), nil
}

// answer reads the state right after the keepalive's own entry.
func (t *term) answer(b beat, s *fsm.State) KeepaliveAnswer {
	l, held := lease.Answer(s, b.Group, b.Node, b.Instance, b.Epoch)
	_, known := s.Nodes[b.Node]
	_, removed := s.Removed[b.Node]
	return KeepaliveAnswer{
		Held: held, Lease: l, Index: s.Index, NextIn: t.nextIn(s), Removed: removed, Unknown: !known && !removed,
		Term: t.number, Time: time.Now(), Present: t.present(s, b.Group),
	}
}

// presentWithin is how recently a keepalive must have come for its node to be told as present.
const presentWithin = 10 * time.Second

// present lists the members of a group that this leader hears of; the one that asks is among them.
func (t *term) present(s *fsm.State, g fsm.GroupID) (out []fsm.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range s.NodeIDs() {
		if h, ok := t.heard[id]; ok && s.Nodes[id].Group == g && time.Since(h.At) < presentWithin {
			out = append(out, id)
		}
	}
	return out
}

// nextIn leads to the point of the grid after the nearest, so that nodes meet there however they begin.
func (t *term) nextIn(s *fsm.State) time.Duration {
	every := lease.Interval(s.Cluster.Settings.TTL)
	if every <= 0 {
		every = lease.Interval(fsm.DefaultSettings().TTL)
	}
	in := every - time.Since(t.ready)%every
	if in <= every/2 {
		in += every
	}
	return in
}

// propose appends an entry in this term and waits for its answer.
func (t *term) propose(ctx context.Context, data []byte) (fsm.Applied, error) {
	p := proposal{data: data, reply: make(chan outcome, 1)}
	o, err := ask(ctx, t, t.proposals, p, p.reply)
	return o.Applied, err
}

// ask hands v to the loop and waits for its outcome.
func ask[T any](ctx context.Context, t *term, to chan T, v T, reply chan outcome) (outcome, error) {
	select {
	case to <- v:
	case <-t.done:
		return outcome{}, errNotLeading
	case <-ctx.Done():
		return outcome{}, fmt.Errorf("%w: %w", errNotLeading, ctx.Err())
	}
	select {
	case o := <-reply:
		return o, o.err
	case <-t.done:
	case <-ctx.Done():
		return outcome{}, fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
	select {
	case o := <-reply: // settled just before the end
		return o, o.err
	default:
		return outcome{}, errNotLeading // it was never appended
	}
}

// encode wraps a command without a request id: it is never repeated.
func encode(c fsm.Command) []byte {
	b, err := fsm.Encode(c, "", time.Now())
	if err != nil {
		panic(err) // a struct of plain values
	}
	return b
}

// slowest remembers the longest wait for a commit in the last minute.
type slowest struct {
	mu   sync.Mutex
	past []took
}

type took struct {
	at time.Time
	d  time.Duration
}

const slowWindow = time.Minute

// note keeps only what no later, slower one has made uninteresting.
func (s *slowest) note(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.past) > 0 && s.past[len(s.past)-1].d <= d {
		s.past = s.past[:len(s.past)-1]
	}
	s.past = append(s.past, took{time.Now(), d})
}

func (s *slowest) get() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.past) > 0 && time.Since(s.past[0].at) > slowWindow {
		s.past = s.past[1:]
	}
	if len(s.past) == 0 {
		return 0
	}
	return s.past[0].d
}
