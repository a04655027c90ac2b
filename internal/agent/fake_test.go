package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
)

func ep(n uint64) fsm.Epoch { return fsm.Epoch{Inc: 1, N: n} }

// bed is one agent among fakes. Everything the agent does is in calls, in order.
type bed struct {
	t     *testing.T
	agent *Agent
	began time.Time
	stop  context.CancelFunc
	done  chan error

	mu        sync.Mutex
	calls     []string
	at        map[string][]time.Duration // when each was made
	state     *fsm.State
	obs       Observation
	local     decide.Local
	sentinel  decide.Sentinel
	inOrder   bool                                       // PostgreSQL ended so
	gone      bool                                       // the sentinel
	silent    bool                                       // it does not answer
	deaf      bool                                       // the leader does not answer
	hooks     map[string]func(ctx context.Context) error // by call
	beats     []Beat
	heard     time.Duration                            // since the leader
	words     func(fsm.Node, decide.WordRequest) error // the members' answers
	remembers fsm.Epoch
	try       func(ctx context.Context, primary bool, connected func()) decide.Trial // nil: all is well
	tries     int
	disks     []decide.Disk
	block     chan struct{} // what touches the disk waits for it
	made      []string      // slots that KeepSlots has made
	present   []fsm.NodeID  // members that the leader hears of
}

// state with nodes a and b in group 0; a holds epoch 1 on timeline 2, open, without standbys.
func startState() *fsm.State {
	s := fsm.NewState()
	s.Index = 1
	s.Cluster.Settings = fsm.DefaultSettings()
	for _, id := range []fsm.NodeID{"a", "b"} {
		s.Nodes[id] = fsm.Node{ID: id, Name: string(id), Postgres: string(id) + ":1", Peer: string(id) + ":2"}
	}
	s.Groups[0] = fsm.Group{
		Mode: fsm.Quorum, SystemID: "sys", LastHolder: "a", Epoch: ep(1), Lease: fsm.Lease{Holder: "a", Instance: "i", Epoch: ep(1), TTL: 5 * time.Second},
		Sync:   fsm.Sync{Pairs: []fsm.Pair{{}}, Confirmed: ep(1)},
		Grants: []fsm.Grant{{Holder: "a", Timeline: 1}, {Epoch: ep(1), Holder: "a", Timeline: 2, Parent: 1, Fork: 50}},
	}
	return s
}

// primaryBed is node a at rest as primary; standbyBed is node b at rest, following a.
func primaryBed(b *bed) {
	b.sentinel = decide.Sentinel{Postmaster: 1, Primary: true, Epoch: ep(1)}
	b.remembers = ep(1)
	b.local = decide.Local{HasData: true, SystemID: "sys", Promise: ep(1), Lineage: map[fsm.Timeline]fsm.Epoch{1: {}, 2: ep(1)}}
	b.obs = Observation{PG: decide.Postgres{Reachable: true, Timeline: 2, LSN: 100}, Conf: decide.Conf{Phase: decide.Open, Epoch: ep(1), Access: decide.Access(b.state)}}
}

func standbyBed(b *bed) {
	primaryBed(b)
	b.sentinel, b.remembers = decide.Sentinel{Postmaster: 1}, fsm.Epoch{}
	b.obs.PG.InRecovery, b.obs.PG.Streaming = true, true
	b.obs.Conf.Upstream = "a"
}

// inBed runs a test of node self in a bubble. The agent runs once prepare has set the scene.
func inBed(t *testing.T, self fsm.NodeID, prepare func(*bed), body func(*bed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(context.Background())
		b := &bed{t: t, began: time.Now(), stop: stop, done: make(chan error, 1), state: startState(), at: map[string][]time.Duration{}, hooks: map[string]func(context.Context) error{}}
		prepare(b)
		b.agent = New(Config{
			Self: self, Control: fakeControl{b}, Peers: fakePeers{b}, Postgres: fakePostgres{b}, Sentinel: &fakeSentinel{b, make(chan struct{})},
			Clock: func() lease.Stamp { return lease.Stamp{Raw: time.Since(b.began), Boot: time.Since(b.began)} }, Log: slog.New(slog.DiscardHandler),
		})
		go func() { b.done <- b.agent.Run(ctx) }()
		defer func() {
			stop()
			<-b.done
		}()
		body(b)
	})
}

// set changes the scene and tells the agent.
func (b *bed) set(f func()) {
	b.mu.Lock()
	f()
	b.mu.Unlock()
	b.agent.Changed(fsm.NewState(), b.state)
}

// group changes the group in the state.
func (b *bed) group(f func(*fsm.Group)) {
	s := *b.state
	s.Groups = maps.Clone(s.Groups)
	g := s.Groups[0]
	g.Grants = slices.Clone(g.Grants)
	f(&g)
	s.Groups[0] = g
	s.Index++
	b.state = &s
}

func (b *bed) call(ctx context.Context, format string, args ...any) error {
	name := fmt.Sprintf(format, args...)
	b.mu.Lock()
	b.calls = append(b.calls, name)
	verb, _, _ := strings.Cut(name, " ")
	b.at[verb] = append(b.at[verb], time.Since(b.began))
	hook := b.hooks[verb]
	b.mu.Unlock()
	if hook != nil {
		return hook(ctx)
	}
	return ctx.Err()
}

func (b *bed) count(verb string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.at[verb])
}

// order checks that the wanted calls came in this order, others between them or not.
func (b *bed) order(want ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	rest := b.calls
	for _, w := range want {
		i := slices.IndexFunc(rest, func(c string) bool { return strings.HasPrefix(c, w) })
		if i < 0 {
			b.t.Fatalf("%q is missing or too early in:\n%s", w, strings.Join(b.calls, "\n"))
		}
		rest = rest[i+1:]
	}
}

// hang is a hook that waits for its context.
func hang(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

type fakeControl struct{ *bed }

func (c fakeControl) State() *fsm.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c fakeControl) Read(ctx context.Context) (*fsm.State, error) {
	return c.State(), c.call(ctx, "read")
}

func (c fakeControl) Submit(ctx context.Context, cmd fsm.Command) (fsm.Result, error) {
	return fsm.Result{OK: true, Index: c.State().Index + 1}, c.call(ctx, "submit-%s %+v", cmd.Kind(), cmd)
}

func (c fakeControl) HeardLeader() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard
}

type fakePeers struct{ *bed }

func (p fakePeers) Word(ctx context.Context, to fsm.Node, r decide.WordRequest) error {
	if err := p.call(ctx, "word %s %s %s", to.ID, r.Epoch, r.Length); err != nil {
		return err
	}
	p.mu.Lock()
	answer := p.words
	p.mu.Unlock()
	if answer == nil {
		return errSilent
	}
	return answer(to, r)
}

func (c fakeControl) Keepalive(ctx context.Context, b Beat) (Answer, error) {
	c.mu.Lock()
	c.beats = append(c.beats, b)
	l, deaf, present := c.state.Groups[0].Lease, c.deaf, c.present
	c.mu.Unlock()
	if deaf {
		return Answer{}, hang(ctx)
	}
	return Answer{Held: l.Holder == b.Node && l.Instance == b.Instance && l.Epoch == b.Epoch, Lease: l, Index: 1, NextIn: 500 * time.Millisecond, Present: present}, c.call(ctx, "keepalive")
}

type fakePostgres struct{ *bed }

func (p fakePostgres) Observe(context.Context, Roster) Observation {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.obs
}

func (p fakePostgres) Local() (decide.Local, error) {
	p.mu.Lock()
	block := p.block
	p.mu.Unlock()
	if block != nil {
		<-block
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.local
	l.Lineage = maps.Clone(l.Lineage)
	return l, nil
}

func (p fakePostgres) InitDB(ctx context.Context) error { return p.call(ctx, "initdb") }
func (p fakePostgres) Identify(ctx context.Context) (string, fsm.Timeline, error) {
	return "sys", 1, p.call(ctx, "identify")
}

func (p fakePostgres) Clone(ctx context.Context, n fsm.Node, e fsm.Epoch, _ map[fsm.Timeline]fsm.Epoch, prefix bool) error {
	return p.call(ctx, "clone %s %s prefix=%v", n.ID, e, prefix)
}

func (p fakePostgres) CloneRoom(ctx context.Context, n fsm.Node) error {
	return p.call(ctx, "room %s", n.ID)
}

func (p fakePostgres) KeepSlots(ctx context.Context, r Roster, primary fsm.Node) ([]string, error) {
	return p.made, p.call(ctx, "keep-slots %s of %s absent=%v", r.Self, primary.ID, r.Absent)
}

func (p fakePostgres) DropUnready(ctx context.Context, _ Roster) error {
	return p.call(ctx, "drop-unready")
}

func (p fakePostgres) Progress() (copied, size int64) { return 0, 0 }

func (p fakePostgres) Rewind(ctx context.Context, n fsm.Node, e fsm.Epoch, _ map[fsm.Timeline]fsm.Epoch, _ fsm.LSN) error {
	return p.call(ctx, "rewind %s %s", n.ID, e)
}

func (p fakePostgres) Configure(ctx context.Context, _ Roster, c decide.Conf) error {
	err := p.call(ctx, "configure %s from=%s %s", c.Phase, c.Upstream, c.Epoch)
	if err == nil {
		p.mu.Lock()
		p.obs.Conf = c
		p.mu.Unlock()
	}
	return err
}

func (p fakePostgres) Prepare(ctx context.Context, _ Roster, c decide.Conf) error {
	return p.call(ctx, "prepare %s", c.Phase)
}

func (p fakePostgres) Promise(ctx context.Context, _ Roster, e fsm.Epoch) error {
	err := p.call(ctx, "promise %s", e)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.local.Promise = e
	return err
}

func (p fakePostgres) Settle(ctx context.Context) (fsm.Timeline, fsm.LSN, error) {
	p.mu.Lock()
	tl, l := p.obs.PG.Timeline, p.obs.PG.LSN
	p.mu.Unlock()
	return tl, l, p.call(ctx, "settle")
}

func (p fakePostgres) SetLineage(made map[fsm.Timeline]fsm.Epoch) error {
	p.mu.Lock()
	p.local.Lineage = maps.Clone(p.local.Lineage)
	maps.Copy(p.local.Lineage, made)
	p.mu.Unlock()
	var text []string
	for _, tl := range slices.Sorted(maps.Keys(made)) {
		text = append(text, fmt.Sprintf("%d=%s", tl, made[tl]))
	}
	return p.call(context.Background(), "lineage %s", strings.Join(text, " "))
}

func (p fakePostgres) SetWord(length time.Duration) error {
	p.mu.Lock()
	p.local.Word = length
	p.mu.Unlock()
	return p.call(context.Background(), "set-word %s", length)
}

func (p fakePostgres) Promoted(ctx context.Context) (tl, parent fsm.Timeline, fork fsm.LSN, err error) {
	return 3, 2, 100, p.call(ctx, "promoted")
}

func (p fakePostgres) Origin(ctx context.Context, tl fsm.Timeline) (fsm.Timeline, fsm.LSN, error) {
	return tl - 1, 100, p.call(ctx, "origin %d", tl)
}

func (p fakePostgres) Applied() decide.Conf {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.obs.Conf
}

func (p fakePostgres) Ended(ctx context.Context) (fsm.Timeline, fsm.LSN, bool, error) {
	err := p.call(ctx, "ended")
	return 2, 99, p.inOrder, err
}

func (p fakePostgres) EndSenders(ctx context.Context) error { return p.call(ctx, "end senders") }

func (p fakePostgres) Slots(ctx context.Context, _ Roster) error { return p.call(ctx, "slots") }
func (p fakePostgres) Barrier(ctx context.Context, _ Roster, _ decide.Conf) error {
	return p.call(ctx, "barrier")
}

func (p fakePostgres) FirstCommit(ctx context.Context, e fsm.Epoch) error {
	return p.call(ctx, "commit %s", e)
}

func (p fakePostgres) Try(ctx context.Context, primary bool, connected func()) decide.Trial {
	p.mu.Lock()
	try := p.try
	p.tries++
	p.mu.Unlock()
	if try == nil {
		connected()
		return decide.Trial{Connected: true}
	}
	return try(ctx, primary, connected)
}

func (p fakePostgres) Disks() []decide.Disk {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.disks
}

func (p fakePostgres) Stopped() bool { return false }

func (p fakePostgres) Equip(ctx context.Context, _ Roster) error { return p.call(ctx, "equip") }

type fakeSentinel struct {
	*bed
	events chan struct{}
}

var errSilent = errors.New("no answer")

func (s *fakeSentinel) Instance() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "i" + strings.Repeat("'", len(s.at["reset"]))
}

func (s *fakeSentinel) Ping(ctx context.Context) (decide.Sentinel, error) {
	s.mu.Lock()
	st, gone, silent := s.sentinel, s.gone, s.silent
	s.mu.Unlock()
	switch {
	case gone:
		return st, ErrSentinelGone
	case silent:
		<-ctx.Done()
		return st, errSilent
	}
	st.Connected = true
	return st, nil
}

func (s *fakeSentinel) Remembered() (fsm.Epoch, lease.Stamp, bool) {
	d := lease.Valid(5 * time.Second)
	return s.remembers, lease.Stamp{Raw: d, Boot: d}, !s.remembers.IsZero()
}

func (s *fakeSentinel) Start(ctx context.Context) error { return s.call(ctx, "start") }
func (s *fakeSentinel) Stop(ctx context.Context, immediate bool) error {
	err := s.call(ctx, "stop immediate=%v", immediate)
	if err == nil {
		s.mu.Lock()
		s.sentinel.Postmaster, s.sentinel.Primary = 0, false
		s.mu.Unlock()
	}
	return err
}

func (s *fakeSentinel) Promote(ctx context.Context, e fsm.Epoch) error {
	err := s.call(ctx, "promote %s", e)
	if err == nil {
		s.mu.Lock()
		s.sentinel.Primary, s.sentinel.Epoch = true, e
		s.obs.PG.InRecovery, s.obs.PG.Timeline = false, 3
		s.mu.Unlock()
	}
	return err
}

func (s *fakeSentinel) Adopt(ctx context.Context, e fsm.Epoch) error {
	return s.call(ctx, "adopt %s", e)
}

func (s *fakeSentinel) Renounce(ctx context.Context, e fsm.Epoch) error {
	return s.call(ctx, "renounce %s", e)
}

func (s *fakeSentinel) Deadline(ctx context.Context, e fsm.Epoch, _ lease.Stamp) error {
	return s.call(ctx, "deadline %s", e)
}
func (s *fakeSentinel) Events() <-chan struct{} { return s.events }
func (s *fakeSentinel) Reset(ctx context.Context) error {
	err := s.call(ctx, "reset")
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.gone, s.silent, s.sentinel = false, false, decide.Sentinel{}
	}
	return err
}
