package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
)

// TestHungHolder: a primary whose log cannot be flushed any more loses the lease while its processes are still there. Nothing acknowledged
// is lost, and it comes back when its disk does, or after its machine was switched off and on.
func TestHungHolder(t *testing.T) {
	for seed := range uint64(manySeeds(4)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			act(t, seed, []int{3}, (*scene).hungHolder)
		})
	}
}

// takeoverLimit is the time of a holder that hangs: until it counts as sick, to the end of the lease where early failover is off, and for the
// election.
const takeoverLimit = 20 * time.Second

// hungHolder hangs the primary's disk: of the log alone, or all of it. It stays so until another
// primary acknowledges writes; then it answers, or the machine is switched off.
func (s *scene) hungHolder() string {
	w, old := s.w, s.old
	before, _ := w.lease(0)
	s.take(old, "the disk of PostgreSQL's log hangs")
	s.stick(old, w.seed/2%2 == 1)
	defer func() {
		if w.seed%3 == 2 {
			s.off(old, 5*time.Second)
			return
		}
		s.mend(old)
		s.free(old)
	}()
	next := s.nextHolder(0, before, takeoverLimit)
	if next == nil || next == old {
		return "nobody takes over while the disk hangs: writes wait"
	}
	if !slices.ContainsFunc(w.known().History[0], func(h fsm.History) bool { return h.Kind == "revoked" && strings.Contains(h.Text, "is sick: ") }) {
		return fmt.Sprintf("the lease went to %s, but not for sickness", next.name)
	}
	if !s.soon(5*time.Second, func() bool { return old.server.proc != nil && old.server.proc.dead }) {
		return "the old server is not stopped, or its processes do not wait for the disk"
	}
	had := s.ackedBy(old)
	if why := w.writable(s.clients); why != "" {
		return why
	}
	if p := old.server.proc; p == nil || !p.dead {
		return "the old server's processes did not outlast the takeover"
	}
	if now := s.ackedBy(old); now != had {
		return fmt.Sprintf("%d writes are acknowledged by processes that were killed", now-had)
	}
	return ""
}

func (s *scene) ackedBy(m *machine) (n int) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for _, at := range s.w.group(0).acked {
		if at.node == m.name {
			n++
		}
	}
	return n
}
