package sim

import (
	"context"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// mutation is a rule, how the simulation does without it, and a schedule that then breaks something. All schedules but shrunk and
// passedOn are too rare among plain seeds; each draws its times from the seed.
type mutation struct {
	rule    rule
	removal string
	sizes   []int
	world   func(w *World)
	play    func(s *scene) string
	seeds   uint64 // how many, from 1 on; each kills it in most runs: Raft draws timeouts of its own
}

var mutations = []mutation{
	{ruleBarrier, "a conductor starts with the state as applied before its term", []int{3}, nil, (*scene).secondBeginner, 8},
	{ruleFullTTL, "what is held when a term begins expires at once", []int{3}, stubborn, (*scene).newLeader, 8},
	{ruleEpoch, "a Release ends whichever epoch is held when it arrives", []int{3, 2}, stubborn, (*scene).lateRelease, 8},
	{ruleInstance, "keepalives count for their node, whatever sentinel they come from", []int{3}, nil, (*scene).twin, 1},
	{ruleRevoke, "a revoked lease is renewed, and its holder does not mind", []int{3}, stubborn, (*scene).failedOver, 8},
	{ruleJoint, "elections go by the newest pair of an epoch", []int{3, 2}, nil, (*scene).shrunk, 8},
	{ruleJointEnd, "a change of the set is confirmed at once", []int{3, 2}, nil, (*scene).shrunk, 8},
	{ruleGrantJoint, "elections forget the pairs from before the newest Grant", []int{3, 2}, nil, (*scene).passedOn, 8},
	{rulePromise, "a recruit lets another walreceiver start, until it is granted the lease itself", []int{3, 2}, sleepers, (*scene).sleeper, 8},
	{ruleCredential, "a recruit keeps the credentials of older epochs", []int{3, 2}, sleepers, (*scene).sleeper, 8},
	{ruleTimeline, "a timeline's number tells whose it is", []int{4, 1}, two, (*scene).sameNumber, 8},
	{ruleFirstCommit, "clients enter with the promotion", []int{4, 1}, two, (*scene).seenTooSoon, 8},
	{ruleMargin, "the sentinel's deadline is later by the margin", []int{3}, stubborn, (*scene).deadAgent, 8},
	{ruleSick, "a holder that is sick keeps the lease", []int{3}, nil, (*scene).hungHolder, 1},
}

// stubborn: what should end takes as long as it may, and who follows is quick.
func stubborn(w *World) { w.hangs, w.brisk, w.quickest = 1, true, w.overshoot }

// sleepers: a machine's clocks may stop, so that it writes when it should not.
func sleepers(w *World) { w.liars, w.early, w.refork = true, true, 1 }

func two(w *World) { w.confirm = 2 }

// TestMutations: without any one rule something breaks that holds with it, on the same schedule.
func TestMutations(t *testing.T) {
	if testing.Short() {
		t.Skip("as long as fifty seeds: without -short")
	}
	for _, m := range mutations {
		t.Run(string(m.rule), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= m.seeds; seed++ {
				why := m.perform(t, seed, m.rule)
				t.Logf("seed %d without %q (%s): %s", seed, m.rule, m.removal, why)
				if why == "" {
					continue
				}
				if why := m.perform(t, seed, ""); why != "" {
					t.Errorf("seed %d, nothing removed: %s", seed, why)
				}
				return
			}
			t.Errorf("nothing breaks without the rule: %s", m.removal)
		})
	}
}

// perform plays the schedule in a bubble and says what broke.
func (m mutation) perform(t *testing.T, seed uint64, without rule) (why string) {
	dir := scratch(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		w, err := newWorld(ctx, seed, dir)
		if err != nil {
			t.Fatal(err)
		}
		w.plain, w.without = true, without
		if m.world != nil {
			m.world(w)
		}
		why = w.perform(ctx, cancel, m)
		if os.Getenv("MATRIARCH_SIM_TRACE") != "" || why != "" && without == "" {
			keepTrace(t, w, why)
		}
	})
	return why
}

func (w *World) perform(ctx context.Context, cancel context.CancelFunc, m mutation) (why string) {
	defer func() {
		w.stop(cancel)
		if v := w.violated(); v != "" {
			why = v
		}
	}()
	if err := w.form(ctx, m.sizes); err != nil {
		return err.Error()
	}
	if why := w.converge(len(m.sizes), 60*time.Second); why != "" {
		return "formation: " + why
	}
	s := &scene{nemesis: &nemesis{w: w, ctx: ctx, busy: map[*machine]string{}}, clients: w.startClients(ctx, len(m.sizes))}
	if why := s.settle(); why != "" {
		return why
	}
	why = m.play(s)
	s.pending.Wait()
	if why != "" || w.violated() != "" {
		return why
	}
	if why := w.converge(len(w.groups), 150*time.Second); why != "" {
		return "does not converge: " + why
	}
	if why := w.writable(s.clients); why != "" {
		return why
	}
	return w.settled()
}

// settle waits until the machines are voters, and the leader is on another machine than the primary; then it casts the parts.
func (s *scene) settle() string {
	for end := time.Now().Add(4 * time.Minute); time.Now().Before(end); {
		_ = pause(s.ctx, 500*time.Millisecond)
		l := s.w.leader()
		voters := 0
		for _, suffrage := range l.agent.node.Status().Suffrage {
			if suffrage == "voter" {
				voters++
			}
		}
		s.old, _ = s.cast(0)
		if s.old != nil && l != s.old && voters == len(s.w.machines) {
			_, standbys := s.cast(0)
			s.to = standbys[0]
			s.w.note("the primary is %s, the leader %s", s.old.name, l.name)
			return ""
		}
	}
	return "the voters are not complete, or the leader stays with the primary"
}

// TestMutationsCoverTheRules keeps the list whole.
func TestMutationsCoverTheRules(t *testing.T) {
	want := []rule{ruleBarrier, ruleFullTTL, ruleEpoch, ruleInstance, ruleRevoke, ruleJoint, ruleJointEnd, ruleGrantJoint, rulePromise, ruleCredential, ruleTimeline, ruleFirstCommit, ruleMargin, ruleSick}
	for i, r := range want {
		if i >= len(mutations) || mutations[i].rule != r {
			t.Errorf("no mutation removes %q", r)
		}
	}
}
