package sim

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"matriarch/fsm"
)

// TestFailsafe loses the majority of the voters around a group that is whole: its primary goes on acknowledging writes, stops in time once
// a member is gone too, and goes on in the same epoch when the majority comes back while words are out.
func TestFailsafe(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			act(t, seed, []int{2, 3}, func(s *scene) string {
				if why := s.trust(); why != "" {
					return why
				}
				before, _ := s.w.lease(0)
				if why := s.majorityGone(14 * time.Second); why != "" {
					return why
				}
				if after, _ := s.w.lease(0); after != before {
					return fmt.Sprintf("epoch %s became %s although the majority was only away", before, after)
				}
				_ = pause(s.ctx, time.Second) // the majority goes again at once, and then a member
				return s.memberGone()
			})
		})
	}
}

// trust switches failsafe on and waits until it is in force.
func (s *scene) trust() string {
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	res, err := s.old.agent.node.Submit(ctx, fsm.GroupSet{Group: 0, Failsafe: new(true)})
	if err != nil || !res.OK {
		return fmt.Sprintf("failsafe: %s %v", res.Reason, err)
	}
	for len(s.w.newest().Eligible) < 2 {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return "failsafe never comes into force"
		}
	}
	return ""
}

// far are the machines of the other group, which are the majority of the voters.
func (s *scene) far() []*machine {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.w.machines), func(m *machine) bool { return m.group == 0 })
}

func (s *scene) acked() uint64 {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return uint64(len(s.w.group(0).acked))
}

// majorityGone takes the majority away for long; the primary must go on meanwhile.
func (s *scene) majorityGone(long time.Duration) string {
	for _, m := range s.far() {
		s.powerCut(m, long)
	}
	_ = pause(s.ctx, long-2*time.Second)
	before := s.acked()
	_ = pause(s.ctx, time.Second)
	if s.acked() == before || !s.old.agent.agent.Failsafe().Active {
		return fmt.Sprintf("%d acknowledged without a majority, and %d a second later: %+v", before, s.acked(), s.old.agent.agent.Failsafe())
	}
	s.pending.Wait()
	return s.w.converge(2, 60*time.Second)
}

// memberGone takes the majority and the one other member away: the primary must stop by V.
func (s *scene) memberGone() string {
	for _, m := range s.far() {
		s.powerCut(m, 20*time.Second)
	}
	_ = pause(s.ctx, 8*time.Second)
	if !s.old.agent.agent.Failsafe().Active {
		return "not upheld"
	}
	s.powerCut(s.to, 12*time.Second)
	_ = pause(s.ctx, 4600*time.Millisecond)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if p := s.old.server.proc; p != nil && p.primary && !p.stopping {
		return "the primary is still up although a member is gone"
	}
	return ""
}
