package conductor

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// Lead is the leadership a conductor serves.
type Lead interface {
	Term() uint64
	State() *fsm.State
	// Submit commits a command in this term or says that it could not.
	Submit(ctx context.Context, c fsm.Command) (fsm.Result, error)
	// Heard is the time since a node's last keepalive, counted from this leader's Barrier at the earliest; ok is false when
	// it has not been heard in this term.
	Heard(n fsm.NodeID) (time.Duration, bool)
}

// Recruiter asks one node for its promise, or for what it sees.
type Recruiter interface {
	Recruit(ctx context.Context, n fsm.Node, e fsm.Epoch) (decide.Recruit, error)
	// Probe asks a standby whether its primary lives. It answers soon in any case.
	Probe(ctx context.Context, n, primary fsm.Node) (decide.Probe, error)
}

// Metadata keeps pg_dist_node right. Reconcile looks once and mends what it finds; it says how it went. It asks for the state
// again before each database, as a round can take seconds.
type Metadata interface {
	Reconcile(ctx context.Context, term uint64, state func() *fsm.State) MetadataReport
}

// MetadataReport is the outcome of one look at the Citus metadata.
type MetadataReport struct {
	At          time.Time `json:"at"`
	Synced      bool      `json:"synced"`
	Differences []string  `json:"differences,omitempty"`
	Error       string    `json:"error,omitempty"`
	Rows        any       `json:"rows,omitempty"`
	Left        []string  `json:"left,omitempty"` // databases that are not listed any more, which are left as they are

	// Paused says that an operation has the metadata and nothing was looked at: that is no news.
	Paused bool `json:"-"`
}

// Config is what a conductor is made of.
type Config struct {
	Recruiter Recruiter
	Metadata  Metadata // nil: no Citus
	Planner   Planner  // nil: planned work checks nothing and pauses nobody
	Log       *slog.Logger
	Decided   func(fsm.GroupID, decide.ClusterPlan) // told every decision whose rule differs from the one before
}

// Conductor serves one leadership after the other.
type Conductor struct {
	cfg    Config
	wake   chan struct{}
	meta   chan struct{}
	plans  atomic.Pointer[map[fsm.GroupID]Decision]
	report atomic.Pointer[MetadataReport]

	pausing atomic.Bool // clients wait: the metadata belongs to the operation
}

// Decision is the newest decision about a group.
type Decision struct {
	At     time.Time `json:"at"`
	Rule   string    `json:"rule"`
	Name   string    `json:"name"`
	Reason string    `json:"reason"`
}

// New makes a conductor.
func New(cfg Config) *Conductor {
	return &Conductor{cfg: cfg, wake: make(chan struct{}, 1), meta: make(chan struct{}, 1)}
}

// Changed tells the conductor of every applied entry. It never blocks, and wakes nobody for an entry that moves nothing.
func (c *Conductor) Changed(prev, next *fsm.State) {
	if fsm.Moved(prev, next) {
		nudge(c.wake)
		nudge(c.meta)
	}
}

func nudge(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Plans are the newest decisions by group; empty on a node that does not lead.
func (c *Conductor) Plans() map[fsm.GroupID]Decision {
	if p := c.plans.Load(); p != nil {
		return maps.Clone(*p)
	}
	return nil
}

// MetadataReport is the newest look at the Citus metadata, nil before the first.
func (c *Conductor) MetadataReport() *MetadataReport { return c.report.Load() }

const (
	lookEvery    = 100 * time.Millisecond // a silent holder is noticed that late
	fastLook     = 25 * time.Millisecond
	recruitAgain = 100 * time.Millisecond
	unfitAgain   = time.Second // between questions to one who promised, but may not become primary just now
	recruitLimit = 3 * time.Second
	commitLimit  = 5 * time.Second
)

// Run serves one term and returns after everything it began has ended.
func (c *Conductor) Run(ctx context.Context, lead Lead) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if c.cfg.Metadata != nil {
		wg.Go(func() { c.keepMetadata(ctx, lead) })
	}
	t := &term{Conductor: c, lead: lead, elections: map[fsm.GroupID]*election{}, answers: make(chan answer), last: map[fsm.GroupID]string{}, changes: map[fsm.GroupID]change{}, works: map[fsm.GroupID]*work{}, results: make(chan worked), probes: map[fsm.GroupID]*probing{}, seen: make(chan sight), early: map[fsm.GroupID]time.Time{}, tried: map[fsm.GroupID]time.Time{}, began: time.Now()}
	t.run(ctx)
	c.plans.Store(nil)
}

// term is the loop's own state; one goroutine owns it.
type term struct {
	*Conductor
	lead      Lead
	elections map[fsm.GroupID]*election
	answers   chan answer
	last      map[fsm.GroupID]string
	changes   map[fsm.GroupID]change
	works     map[fsm.GroupID]*work
	results   chan worked
	probes    map[fsm.GroupID]*probing
	seen      chan sight
	early     map[fsm.GroupID]time.Time // when this leader last revoked a lease on evidence
	tried     map[fsm.GroupID]time.Time // and last began a switchover for sickness
	began     time.Time
	wg        sync.WaitGroup
}

// change is a group's holder as last seen, and when another took its place unasked.
type change struct {
	holder fsm.NodeID
	asked  bool // an operation was there when last looked
	at     time.Time
}

// election gathers the answers of one group's members for one epoch.
type election struct {
	prev     fsm.Epoch // the group's epoch when it began
	began    time.Time
	enough   time.Time
	recruits map[fsm.NodeID]decide.Recruit
	refusals map[fsm.NodeID]string
	asking   map[fsm.NodeID]bool
	again    map[fsm.NodeID]time.Time
}

type answer struct {
	group fsm.GroupID
	prev  fsm.Epoch
	node  fsm.NodeID
	r     decide.Recruit
	err   error
}

func (t *term) run(ctx context.Context) {
	defer t.wg.Wait()
	defer t.endWork()
	for ctx.Err() == nil {
		wait := lookEvery
		if t.look(ctx) {
			wait = fastLook
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-t.wake:
		case a := <-t.answers:
			t.take(a)
		case r := <-t.results:
			t.took(r)
		case x := <-t.seen:
			t.saw(x)
		}
		timer.Stop()
	}
}

// look decides about every group once. It reports whether an election is under way.
func (t *term) look(ctx context.Context) (busy bool) {
	s := t.lead.State()
	plans := map[fsm.GroupID]Decision{}
	for _, id := range s.GroupIDs() {
		g := s.Groups[id]
		if e := t.elections[id]; e != nil && (g.Held() && !g.Lease.Early || e.prev != g.Epoch) {
			delete(t.elections, id)
		}
		t.noteChange(g)
		v := t.view(s, g, t.elections[id])
		v.Work = t.track(g).view()
		if pl := g.Planned; pl != nil && !time.Now().Before(pl.Due) {
			v.Due, v.Late = true, time.Since(pl.Due)
		}
		v.Probes, v.Probing = t.probed(g)
		v.LastEarly = ago(t.early[id])
		t.health(s, g, &v)
		p := decide.Cluster(v)
		plans[id] = Decision{At: time.Now(), Rule: p.Rule, Name: p.Name, Reason: p.Reason}
		if t.last[id] != p.Rule {
			t.last[id] = p.Rule
			t.cfg.Log.Info("decided", "group", int(id), "rule", p.Rule, "name", p.Name, "reason", p.Reason)
			if t.cfg.Decided != nil {
				t.cfg.Decided(id, p)
			}
		}
		t.act(ctx, s, g, p)
		busy = busy || t.elections[id] != nil || t.works[id] != nil || p.Rule == "C130" || p.Rule == "C135"
	}
	t.plans.Store(&plans)
	return busy
}

// health fills in how long ago what happened. By the wall clock, as it may have happened before this leader came: one that was set back
// makes the group wait, not change its primary.
func (t *term) health(s *fsm.State, g fsm.Group, v *decide.GroupView) {
	v.SinceSick, v.TriedSick, v.Ailed = ago(g.SickMoved), ago(t.tried[g.ID]), map[fsm.NodeID]time.Duration{}
	for _, n := range s.Members(g.ID) {
		if at := n.Report.SickAt; !at.IsZero() {
			v.Ailed[n.ID] = ago(at)
		}
	}
}

// ago is 0 for a time that never was, and more than 0 for any other.
func ago(at time.Time) time.Duration {
	if at.IsZero() {
		return 0
	}
	return max(time.Since(at), 1)
}

func (t *term) noteChange(g fsm.Group) {
	c, known := t.changes[g.ID]
	if known && c.holder != g.LastHolder && c.holder != "" && !c.asked {
		c.at = time.Now()
	}
	c.holder, c.asked = g.LastHolder, g.Op != nil
	t.changes[g.ID] = c
}

func (t *term) view(s *fsm.State, g fsm.Group, e *election) decide.GroupView {
	v := decide.GroupView{State: s, Group: g, Heard: map[fsm.NodeID]time.Duration{}, Leading: time.Since(t.began), Reference: s.Nodes[g.LastHolder].Report.Replay}
	if at := t.changes[g.ID].at; !at.IsZero() {
		v.Changed = time.Since(at)
	}
	for _, n := range s.Members(g.ID) {
		if ago, ok := t.lead.Heard(n.ID); ok {
			v.Heard[n.ID] = ago
		}
	}
	if e == nil {
		return v
	}
	v.Asking, v.Refusals = max(time.Since(e.began), 1), e.refusals
	for _, n := range s.Members(g.ID) {
		if r, ok := e.recruits[n.ID]; ok {
			v.Recruits = append(v.Recruits, r)
		}
	}
	if !decide.Enough(v) {
		e.enough = time.Time{}
		return v
	}
	if e.enough.IsZero() {
		e.enough = time.Now()
	}
	v.Enough = time.Since(e.enough)
	return v
}
