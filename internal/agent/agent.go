package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// ErrRemoved ends Run when the node was taken out of the cluster for good.
var ErrRemoved = errors.New("this node was removed from the cluster for good; its data directory is untouched: to join again, empty the state folder and use a new token")

// Config is what an agent is made of.
type Config struct {
	Self     fsm.NodeID
	Control  Control
	Postgres Postgres
	Sentinel Sentinel
	Clock    lease.Clock
	Hooks    Hooks // nil: none
	Peers    Peers // nil: nobody can be asked, so there is no failsafe
	Log      *slog.Logger
	// Decided is told every decision whose rule differs from the one before.
	Decided func(decide.Plan)
	// Alive is told of every round of the loop, at least one a second or two while it is well. It never blocks. nil: nobody.
	Alive func()
}

// Agent runs one node.
type Agent struct {
	cfg  Config
	wake chan struct{}

	lease    leaseBox
	sentinel sentinelBox
	poke     chan struct{} // the state moved: a lease may wait for its first keepalive
	moved    chan struct{} // an entry was applied: for the job that waits for it
	news     chan struct{} // the report changed: the next keepalive is wanted soon
	opened   chan struct{} // PostgreSQL lets clients in, some of which wait for this: the next keepalive is wanted now

	recruits chan recruitCall
	restarts chan chan error
	reinits  chan reinitCall
	unfit    unfitBox
	word     *wordBox
	failsafe failsafeBox
	stopping atomic.Int32                    // stops of PostgreSQL under way: what it refuses meanwhile is no sickness
	health   atomic.Pointer[decide.Sickness] // nil: well
	jobs     chan jobDone
	equipped atomic.Pointer[fsm.Epoch]
	removed  atomic.Bool // by the leader's word
	presence presenceBox

	// Below: owned by the loop.
	job       *job
	obs       Observation
	backoff   time.Time
	failed    string // what failed last, and the job's name
	failedJob string
	failures  int
	missing   map[fsm.NodeID]time.Time // when a standby was last seen streaming
	primaryAt time.Time
	lastRule  string
	lastRole  string // told to the hooks

	view atomic.Pointer[Snapshot]
}

// Snapshot is what readers see of the loop: the newest decision and what it rested on.
type Snapshot struct {
	At     time.Time
	View   decide.View
	Plan   decide.Plan
	Report fsm.Report
	Aside  []string   // what was set aside, and where
	Slots  []SlotSeen // replication slots
	Past   []Decision // newest last
}

// Decision is one change of the deciding rule.
type Decision struct {
	At     time.Time `json:"at"`
	Rule   string    `json:"rule"`
	Name   string    `json:"name"`
	Reason string    `json:"reason"`
}

const pastDecisions = 50

// New makes an agent; Run starts it.
func New(cfg Config) *Agent {
	if cfg.Hooks == nil {
		cfg.Hooks = NoHooks{}
	}
	if cfg.Alive == nil {
		cfg.Alive = func() {}
	}
	return &Agent{
		cfg: cfg, word: newWordBox(), wake: make(chan struct{}, 1), poke: make(chan struct{}, 1), news: make(chan struct{}, 1), opened: make(chan struct{}, 1), moved: make(chan struct{}, 1),
		recruits: make(chan recruitCall), restarts: make(chan chan error), reinits: make(chan reinitCall), jobs: make(chan jobDone, 1), missing: map[fsm.NodeID]time.Time{},
	}
}

// Changed tells the agent of every applied entry. It never blocks, and wakes nobody for an entry that moves nothing.
func (a *Agent) Changed(prev, next *fsm.State) {
	nudge(a.moved)
	if fsm.Moved(prev, next) {
		nudge(a.wake)
		nudge(a.poke)
	}
}

// Removed tells the agent that the node was taken out for good, which its own copy of the state may never say.
func (a *Agent) Removed() {
	a.removed.Store(true)
	nudge(a.wake)
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Snapshot is the newest decision, nil before the first.
func (a *Agent) Snapshot() *Snapshot { return a.view.Load() }

// Run drives the node until ctx ends or the node is removed. PostgreSQL keeps running: the sentinel is its parent.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	if e, until, ok := a.cfg.Sentinel.Remembered(); ok {
		a.lease.restore(a.cfg.Sentinel.Instance(), e, until)
	}
	a.present(nil)
	a.word.tend(a.cfg.Clock, a.cfg.Postgres)
	a.meet(ctx)
	wg.Go(func() { a.keepalives(ctx) })
	wg.Go(func() { a.heartbeat(ctx) })
	wg.Go(func() { a.keepFailsafe(ctx) })
	wg.Go(func() { a.examine(ctx) })
	wg.Go(func() { a.keepSlots(ctx) })
	err := a.loop(ctx)
	cancel()
	if a.job != nil {
		<-a.jobs
	}
	wg.Wait()
	return err
}

// meet waits for the sentinel's first answer: before it, nothing is known of a PostgreSQL that may be running. A sentinel that
// leaves the end of the lease it remembers unanswered counts as lost.
func (a *Agent) meet(ctx context.Context) {
	e, _, _ := a.cfg.Sentinel.Remembered()
	for ctx.Err() == nil {
		err := a.ping(ctx)
		if err == nil || errors.Is(err, ErrSentinelGone) || a.lease.left(a.cfg.Sentinel.Instance(), e, a.cfg.Clock()) <= 0 {
			return
		}
	}
}

// sentinelBox holds the last answer of the sentinel, and since when one is owed.
type sentinelBox struct {
	mu    sync.Mutex
	last  decide.Sentinel
	asked time.Time // when the oldest question without an answer was put; zero: none
}

func (b *sentinelBox) ask() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.asked.IsZero() {
		b.asked = time.Now()
	}
}

func (b *sentinelBox) put(s decide.Sentinel, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		if errors.Is(err, ErrSentinelGone) {
			b.last.Connected = false
		}
		return
	}
	s.Connected = true
	b.last, b.asked = s, time.Time{}
}

// ErrSentinelGone is returned by Sentinel methods when its process is gone, not merely slow.
var ErrSentinelGone = errors.New("the sentinel is gone")

func (b *sentinelBox) get() decide.Sentinel {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.last
	if !b.asked.IsZero() {
		s.Silent = time.Since(b.asked)
	}
	return s
}
