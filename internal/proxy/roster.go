package proxy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"matriarch/fsm"
)

// errDeposed is why a session's context ends when its server loses the role.
var errDeposed = errors.New("the server is no longer listed for this role")

// pair is what a session belongs to.
type pair struct {
	node  fsm.NodeID
	epoch fsm.Epoch
}

func (t Target) pair() pair { return pair{t.Node, t.Epoch} }

// roster holds the targets of one listener and who is attached to them.
type roster struct {
	mu      sync.Mutex
	targets []Target
	since   map[pair]time.Time // when it was first listed
	seats   map[pair]map[*seat]struct{}
	changed chan struct{} // closed at the next change
	turn    int           // where the search begins, so that equals take turns
}

// seat is one session's attachment to a target, from before it connects. Its context ends with errDeposed.
type seat struct {
	Target

	ctx    context.Context
	cancel context.CancelCauseFunc
	since  time.Time
	roster *roster
}

func newRoster() *roster {
	return &roster{since: map[pair]time.Time{}, seats: map[pair]map[*seat]struct{}{}, changed: make(chan struct{})}
}

// update replaces the targets and ends the seats of those that are gone; it returns how many each of them had.
func (r *roster) update(targets []Target) map[Target]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(r.targets, targets) {
		return nil
	}
	listed := map[pair]bool{}
	for _, t := range targets {
		listed[t.pair()] = true
		if _, ok := r.since[t.pair()]; !ok {
			r.since[t.pair()] = time.Now()
		}
	}
	ended := map[Target]int{}
	for _, t := range r.targets {
		p := t.pair()
		if listed[p] {
			continue
		}
		for s := range r.seats[p] {
			s.cancel(errDeposed)
		}
		if n := len(r.seats[p]); n > 0 {
			ended[t] = n
		}
		delete(r.seats, p)
		delete(r.since, p)
	}
	r.targets = slices.Clone(targets)
	close(r.changed)
	r.changed = make(chan struct{})
	return ended
}

// take gives a seat at the open target with the fewest sessions, those in avoid excepted. Without one it returns the channel that is closed
// at the next change.
func (r *roster) take(ctx context.Context, avoid map[pair]bool) (*seat, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	best := -1
	for i := range r.targets {
		i = (i + r.turn) % len(r.targets)
		t := r.targets[i]
		if t.Draining || avoid[t.pair()] {
			continue
		}
		if best < 0 || len(r.seats[t.pair()]) < len(r.seats[r.targets[best].pair()]) {
			best = i
		}
	}
	if best < 0 {
		return nil, r.changed
	}
	r.turn = best + 1
	t := r.targets[best]
	s := &seat{Target: t, since: r.since[t.pair()], roster: r}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	if r.seats[t.pair()] == nil {
		r.seats[t.pair()] = map[*seat]struct{}{}
	}
	r.seats[t.pair()][s] = struct{}{}
	return s, nil
}

// release gives the seat back.
func (s *seat) release() {
	s.roster.mu.Lock()
	defer s.roster.mu.Unlock()
	delete(s.roster.seats[s.pair()], s)
	s.cancel(nil)
}

// list returns the targets, draining ones included.
func (r *roster) list() []Target {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.targets)
}

// servers is the list for people.
func (r *roster) servers() []ServerStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []ServerStats
	for _, t := range r.targets {
		out = append(out, ServerStats{Name: t.Name, Addr: t.Addr, Sessions: len(r.seats[t.pair()]), Draining: t.Draining})
	}
	return out
}
