package agent

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// trusting puts failsafe in force for the group of the bed.
func trusting(b *bed) {
	b.group(func(g *fsm.Group) { g.Failsafe, g.Eligible = true, []fsm.NodeID{"a", "b"} })
	b.state.Index = 1
}

func (b *bed) answer(f func(fsm.Node, decide.WordRequest) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.words = f
}

func (b *bed) deafen(deaf bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deaf = deaf
}

func yes(fsm.Node, decide.WordRequest) error { return nil }

// TestFailsafeKeepsThePrimary: up on the members' words for long after the lease, and down soon after one of them is gone.
func TestFailsafeKeepsThePrimary(t *testing.T) {
	inBed(t, "a", func(b *bed) { primaryBed(b); trusting(b) }, func(b *bed) {
		b.answer(yes)
		time.Sleep(2 * time.Second)
		if b.count("word") != 0 || b.agent.Failsafe().Active {
			b.t.Fatal("asked for words although the leader answers")
		}
		b.deafen(true)
		time.Sleep(30 * time.Second)
		if f := b.agent.Failsafe(); b.count("stop") != 0 || !f.Active || !f.On || len(f.Without) != 0 {
			b.t.Fatalf("not upheld: %+v", f)
		}
		b.deafen(false)
		time.Sleep(2 * time.Second) // a keepalive may be on its way into the deaf ear, then comes the next, then the look
		if f := b.agent.Failsafe(); f.Active {
			b.t.Fatalf("the leader answers: %+v", f)
		}
		b.deafen(true)
		time.Sleep(10 * time.Second)
		b.answer(func(fsm.Node, decide.WordRequest) error { return errors.New("cut off") })
		at := time.Since(b.began)
		time.Sleep(6 * time.Second)
		b.mu.Lock()
		defer b.mu.Unlock()
		if n := len(b.at["stop"]); n == 0 || b.at["stop"][0]-at > 4600*time.Millisecond {
			b.t.Errorf("stopped at %v, the last word was given before %s", b.at["stop"], at)
		}
		if f := b.agent.Failsafe(); f.Active {
			b.t.Errorf("still active: %+v", f)
		}
	})
}

// TestFailsafeNeedsAnAnswerSinceTheStart: an agent that begins without a leader may know too few members.
func TestFailsafeNeedsAnAnswerSinceTheStart(t *testing.T) {
	inBed(t, "a", func(b *bed) { primaryBed(b); trusting(b); b.deaf, b.words = true, yes }, func(b *bed) {
		time.Sleep(6 * time.Second)
		if b.count("word") != 0 || b.count("stop") == 0 {
			b.t.Errorf("asked %d times, stopped %d times", b.count("word"), b.count("stop"))
		}
	})
}

// TestMembersAreTakenInUnderALeaseOnly: words that were given before a member was known do not cover it.
func TestMembersAreTakenInUnderALeaseOnly(t *testing.T) {
	inBed(t, "a", func(b *bed) { primaryBed(b); trusting(b); b.words = yes }, func(b *bed) {
		time.Sleep(time.Second)
		b.deafen(true)
		time.Sleep(10 * time.Second)
		b.set(func() {
			s := *b.state
			s.Nodes = map[fsm.NodeID]fsm.Node{"c": {ID: "c", Name: "c", Peer: "c:2"}}
			maps.Copy(s.Nodes, b.state.Nodes)
			b.state = &s
		})
		time.Sleep(5 * time.Second)
		b.order("word c")
		if b.count("submit-eligible_set") != 0 {
			b.t.Fatal("took a member in while words kept the lease")
		}
		b.deafen(false)
		time.Sleep(3 * time.Second)
		if b.count("submit-eligible_set") == 0 {
			b.t.Fatal("a member is never taken in")
		}
		asked := time.Since(b.began)
		b.set(func() { // as by an old copy: without c
			s := *b.state
			s.Nodes = maps.Clone(s.Nodes)
			delete(s.Nodes, "c")
			b.state, b.deaf = &s, true
		})
		time.Sleep(8 * time.Second)
		b.mu.Lock()
		defer b.mu.Unlock()
		if n := len(b.at["stop"]); n == 0 || b.at["stop"][0]-asked > 5*time.Second {
			b.t.Errorf("words of fewer than those taken in kept the primary up: stopped at %v, deaf since %s", b.at["stop"], asked)
		}
	})
}

func TestGivingAWord(t *testing.T) {
	req := decide.WordRequest{Group: 0, Holder: "a", Epoch: ep(1), Length: 5 * time.Second}
	granted := func(b *bed) {
		b.set(func() {
			b.group(func(g *fsm.Group) {
				g.Epoch, g.LastHolder = ep(2), "b"
				g.Lease = fsm.Lease{Holder: "b", Instance: "i", Epoch: ep(2), TTL: 5 * time.Second}
				g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: "b"})
				g.Sync.Pairs = append(g.Sync.Pairs, fsm.Pair{K: 0})
			})
			b.obs.PG.Streaming, b.obs.PG.Settled, b.obs.Conf.Upstream = false, true, ""
		})
	}
	scene := func(b *bed) { standbyBed(b); trusting(b); b.heard = time.Minute }

	t.Run("binds", func(t *testing.T) {
		inBed(t, "b", scene, func(b *bed) {
			time.Sleep(time.Second)
			if err := b.agent.Word(context.Background(), req); err != nil {
				b.t.Fatal(err)
			}
			b.order("set-word 5s")
			if _, err := b.agent.Recruit(context.Background(), ep(2)); err == nil || !strings.Contains(err.Error(), "its word") {
				b.t.Errorf("recruited: %v", err)
			}
			at := time.Since(b.began)
			granted(b)
			time.Sleep(4900 * time.Millisecond)
			if n := b.count("promote"); n != 0 {
				b.t.Fatalf("promoted %d times within its word", n)
			}
			time.Sleep(time.Second)
			b.order("set-word 5s", "promote")
			b.order("set-word 5s", "set-word 0s")
			b.mu.Lock()
			defer b.mu.Unlock()
			if took := b.at["promote"][0] - at; took < 5*time.Second || took > 5300*time.Millisecond {
				b.t.Errorf("promoted after %s", took)
			}
		})
	})

	t.Run("binds after a restart", func(t *testing.T) {
		inBed(t, "b", func(b *bed) { scene(b); b.local.Word = 5 * time.Second }, func(b *bed) {
			granted(b)
			time.Sleep(4900 * time.Millisecond)
			if n := b.count("promote"); n != 0 {
				b.t.Fatalf("promoted %d times", n)
			}
			time.Sleep(time.Second)
			b.order("promote")
		})
	})

	t.Run("is not given in a promotion", func(t *testing.T) {
		inBed(t, "b", func(b *bed) { scene(b); b.hooks["promote"] = hang }, func(b *bed) {
			time.Sleep(time.Second)
			granted(b)
			time.Sleep(time.Second)
			b.order("promote")
			if err := b.agent.Word(context.Background(), decide.WordRequest{Group: 0, Holder: "a", Epoch: ep(2), Length: time.Second}); err == nil || !strings.Contains(err.Error(), "promoted") {
				b.t.Errorf("given: %v", err)
			}
		})
	})

	t.Run("is not given before it is durable", func(t *testing.T) {
		inBed(t, "b", func(b *bed) {
			scene(b)
			b.hooks["set-word"] = func(context.Context) error { return errors.New("disk full") }
		}, func(b *bed) {
			time.Sleep(time.Second)
			if err := b.agent.Word(context.Background(), req); err == nil || !strings.Contains(err.Error(), "disk full") {
				b.t.Errorf("given: %v", err)
			}
		})
	})

	t.Run("is not given while a leader is heard", func(t *testing.T) {
		inBed(t, "b", func(b *bed) { scene(b); b.heard = 0 }, func(b *bed) {
			time.Sleep(time.Second)
			if err := b.agent.Word(context.Background(), req); err == nil || b.count("set-word") != 0 {
				b.t.Errorf("given: %v", err)
			}
		})
	})
}
