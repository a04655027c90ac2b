package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// wordTimeout bounds one question for a member's word.
const wordTimeout = time.Second

// Failsafe is what a node says of its own part in it.
type Failsafe struct {
	On       bool                  `json:"on"`               // the setting of its group, as this node knows it
	Active   bool                  `json:"active"`           // its primary is up on the words of the members, not on its lease
	Since    time.Time             `json:"since,omitzero"`   // Active
	Rule     string                `json:"rule,omitempty"`   // why it asks for words, or does not
	Name     string                `json:"name,omitempty"`   // of the rule
	Without  map[fsm.NodeID]string `json:"without,omitzero"` // who did not give its word when last asked, and why
	WordLeft time.Duration         `json:"word_left_ns"`     // how long its own word to another primary binds it
}

// failsafeBox is what readers see of failsafe; its goroutine writes it.
type failsafeBox struct {
	mu  sync.Mutex
	now Failsafe
}

func (b *failsafeBox) get() Failsafe {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

func (b *failsafeBox) put(f Failsafe) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = f
}

// Failsafe is what this node says of its own part in it.
func (a *Agent) Failsafe() Failsafe {
	f := a.failsafe.get()
	f.WordLeft = max(a.word.left(a.cfg.Clock()), 0)
	return f
}

// keepFailsafe asks for words as long as the leader leaves keepalives unanswered, and lets this node's own word go when it is over.
func (a *Agent) keepFailsafe(ctx context.Context) {
	for {
		a.word.tend(a.cfg.Clock, a.cfg.Postgres)
		a.hold(ctx)
		t := time.NewTimer(a.interval() / 2)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// hold prolongs the lease by the words of all members, if the rules want it.
func (a *Agent) hold(ctx context.Context) {
	s := a.cfg.Control.State()
	self := s.Nodes[a.cfg.Self]
	g := s.Groups[self.Group]
	instance := a.cfg.Sentinel.Instance()
	e := g.Lease.Epoch
	asked := a.cfg.Clock()
	f := a.failsafe.get()
	rule := decide.Hold(decide.HoldView{
		Self: a.cfg.Self, State: s, Instance: instance, Sentinel: a.sentinel.get(), LeaseLeft: a.lease.left(instance, e, asked),
		Confirmed: a.lease.confirmed(instance, e, s.Index),
	})
	f.On, f.Rule, f.Name = g.Failsafe, rule.ID, rule.Name
	if rule.Ask {
		f.Without = a.askAll(ctx, s, decide.WordRequest{Group: g.ID, Holder: a.cfg.Self, Epoch: e, Length: g.Lease.TTL})
		if len(f.Without) == 0 {
			if until, moved := a.lease.extend(asked, a.cfg.Clock(), instance, e, g.Lease.TTL, membersOf(s, g.ID)); moved {
				a.renewed(ctx, e, until)
			}
		}
	}
	a.tellFailsafe(s, f, a.lease.byWords(instance, e, a.cfg.Clock()))
}

// tellFailsafe publishes, and logs the begin, the end and what is in the way.
func (a *Agent) tellFailsafe(s *fsm.State, f Failsafe, active bool) {
	before := a.failsafe.get()
	without := refusals(s, f.Without)
	switch {
	case active && !before.Active:
		f.Active, f.Since = true, time.Now()
		a.cfg.Log.Warn("failsafe begins: no Raft leader answers, but every member of the group gave its word not to become primary; the primary stays up")
	case !active && before.Active && a.sentinel.get().Primary && without == "":
		f.Active = false
		a.cfg.Log.Warn("failsafe ends: the Raft leader answers again", "lasted", time.Since(before.Since).String())
	case !active && before.Active:
		f.Active = false
		a.cfg.Log.Warn("failsafe ends: not every member gave its word; the primary stops with its lease", "lasted", time.Since(before.Since).String(), "without", without)
	}
	if without != "" && !maps.Equal(f.Without, before.Without) {
		a.cfg.Log.Warn("failsafe: no Raft leader answers and not every member gave its word: the primary stops at the end of its lease unless that changes", "without", without)
	}
	a.failsafe.put(f)
}

func refusals(s *fsm.State, without map[fsm.NodeID]string) string {
	var parts []string
	for _, id := range slices.Sorted(maps.Keys(without)) {
		parts = append(parts, s.Name(id)+": "+without[id])
	}
	return strings.Join(parts, "; ")
}

func membersOf(s *fsm.State, g fsm.GroupID) (ids []fsm.NodeID) {
	for _, n := range s.Members(g) {
		ids = append(ids, n.ID)
	}
	return ids
}

// askAll asks every other member, all at once, and returns who did not give its word.
func (a *Agent) askAll(ctx context.Context, s *fsm.State, r decide.WordRequest) map[fsm.NodeID]string {
	ctx, cancel := context.WithTimeout(ctx, wordTimeout)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	without := map[fsm.NodeID]string{}
	for _, n := range s.Members(r.Group) {
		if n.ID == a.cfg.Self {
			continue
		}
		wg.Go(func() {
			err := errors.New("cannot be asked")
			if a.cfg.Peers != nil {
				err = a.cfg.Peers.Word(ctx, n, r)
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				without[n.ID] = err.Error()
			}
		})
	}
	wg.Wait()
	return without
}

// Word answers a primary of this node's group that has no leader: nil is this node's word not to become primary for as long as asked.
// It is durable before it is given. The error says why not.
func (a *Agent) Word(ctx context.Context, r decide.WordRequest) error {
	received := a.cfg.Clock()
	if err := a.mayGiveWord(ctx, r); err != nil {
		return err
	}
	if err := a.word.give(received, r.Length, a.cfg.Postgres); err != nil {
		return err
	}
	return a.mayGiveWord(ctx, r) // what was ordered before is seen now; what comes later finds the word
}

func (a *Agent) mayGiveWord(ctx context.Context, r decide.WordRequest) error {
	local, err := a.cfg.Postgres.Local()
	if err != nil {
		return err
	}
	pctx, cancel := context.WithTimeout(ctx, decide.SentinelSilence)
	defer cancel()
	st, err := a.cfg.Sentinel.Ping(pctx)
	if err != nil {
		st = decide.Sentinel{}
	}
	rule, text := decide.GiveWord(decide.WordView{
		Self: a.cfg.Self, State: a.cfg.Control.State(), Hears: a.cfg.Control.HeardLeader(), Local: local, Sentinel: st, Promoting: a.word.promotes(), Asked: r,
	})
	if !rule.Give {
		return errors.New(text)
	}
	return nil
}

// wordBox keeps this node's word and promotions apart.
type wordBox struct {
	disk chan struct{} // held by who writes; guards stored
	// stored is the length on disk.
	stored time.Duration

	mu        sync.Mutex
	word      lease.Word
	loaded    bool // what an earlier process wrote down counts
	promoting int  // promotions under way
}

func newWordBox() *wordBox { return &wordBox{disk: make(chan struct{}, 1)} }

// wordStore is where a word outlives the process.
type wordStore interface {
	Local() (decide.Local, error)
	SetWord(length time.Duration) error
}

// tend takes over what an earlier process gave, as if it were given now, and forgets what is over.
func (b *wordBox) tend(clock lease.Clock, s wordStore) {
	b.disk <- struct{}{}
	defer func() { <-b.disk }()
	if !b.isLoaded() {
		local, err := s.Local()
		if err != nil {
			return // it binds until it can be read; the loop tells
		}
		b.stored = local.Word
		b.load(clock(), local.Word)
	}
	if b.stored > 0 && b.left(clock()) <= 0 && s.SetWord(0) == nil {
		b.stored = 0
	}
}

func (b *wordBox) isLoaded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.loaded
}

func (b *wordBox) load(now lease.Stamp, length time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loaded = true
	if length > 0 {
		b.word.Give(now, length)
	}
}

// give binds this node. Before it returns the length is on disk: a process that begins later counts it from its own beginning.
func (b *wordBox) give(received lease.Stamp, length time.Duration, s wordStore) error {
	b.disk <- struct{}{}
	defer func() { <-b.disk }()
	if err := b.bind(received, length); err != nil {
		return err
	}
	if b.stored < length {
		if err := s.SetWord(length); err != nil {
			return fmt.Errorf("write its word down: %w", err)
		}
		b.stored = length
	}
	return nil
}

func (b *wordBox) bind(received lease.Stamp, length time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !b.loaded:
		return errors.New("it has just started")
	case b.promoting > 0:
		return errors.New("it is being promoted")
	}
	b.word.Give(received, length)
	return nil
}

// enter begins a promotion, which no word may cross; leave ends it.
func (b *wordBox) enter(now lease.Stamp) (leave func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.leftLocked(now) > 0 {
		return nil, errNotYet
	}
	b.promoting++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.promoting--
	}, nil
}

func (b *wordBox) promotes() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.promoting > 0
}

// left is how long the word binds.
func (b *wordBox) left(now lease.Stamp) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.leftLocked(now)
}

func (b *wordBox) leftLocked(now lease.Stamp) time.Duration {
	if !b.loaded {
		return decide.MaxWord
	}
	return b.word.Left(now)
}

// takeIn lets every member that this node knows be elected. From now on it asks them all: no words of fewer prolong the lease.
func (a *Agent) takeIn(ctx context.Context, r Roster, x decide.TakeIn) error {
	if !a.lease.offer(a.cfg.Sentinel.Instance(), x.Epoch, x.Nodes) {
		return errNotYet
	}
	return a.submit(ctx, fsm.EligibleSet{Group: r.Group.ID, Epoch: x.Epoch, Nodes: x.Nodes})
}
