package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
)

func TestAtRestNothingHappens(t *testing.T) {
	for _, tc := range []struct {
		self    fsm.NodeID
		prepare func(*bed)
	}{{"a", func(b *bed) { primaryBed(b); b.hooks["equip"] = nil }}, {"b", standbyBed}} {
		inBed(t, tc.self, tc.prepare, func(b *bed) {
			time.Sleep(2 * time.Second)
			b.mu.Lock()
			b.calls = nil
			b.mu.Unlock()
			time.Sleep(10 * time.Second)
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, c := range b.calls {
				if c != "keepalive" && !strings.HasPrefix(c, "deadline") {
					b.t.Errorf("node %s at rest: %s", tc.self, c)
				}
			}
			if n := len(b.at["keepalive"]); n < 10 || n > 30 {
				b.t.Errorf("node %s: %d keepalives in 12 s", tc.self, n)
			}
		})
	}
}

// TestSafetyCancelsWork: the lease ends while an action hangs.
func TestSafetyCancelsWork(t *testing.T) {
	cancelled := time.Duration(0)
	inBed(t, "a", func(b *bed) {
		primaryBed(b)
		b.deaf = true
		b.hooks["equip"] = func(ctx context.Context) error {
			err := hang(ctx)
			cancelled = time.Since(b.began)
			return err
		}
	}, func(b *bed) {
		time.Sleep(6 * time.Second)
		b.order("equip", "stop immediate=true", "submit-release")
		b.mu.Lock()
		defer b.mu.Unlock()
		if at := b.at["stop"][0]; at < 4400*time.Millisecond || at > 4800*time.Millisecond || cancelled > at {
			b.t.Errorf("work cancelled at %s, stopped at %s; the lease ended at 4.49s", cancelled, at)
		}
	})
}

func TestFailuresBackOff(t *testing.T) {
	inBed(t, "b", func(b *bed) {
		standbyBed(b)
		b.sentinel.Postmaster = 0
		b.hooks["start"] = func(context.Context) error { return errors.New("no disk") }
	}, func(b *bed) {
		time.Sleep(time.Minute)
		b.mu.Lock()
		defer b.mu.Unlock()
		at := b.at["start"]
		if len(at) < 8 || len(at) > 16 {
			b.t.Fatalf("%d attempts in a minute: %v", len(at), at)
		}
		for i := 2; i < len(at); i++ {
			if gap, before := at[i]-at[i-1], at[i-1]-at[i-2]; gap+10*time.Millisecond < before || gap > 11*time.Second {
				b.t.Errorf("gap %s after %s", gap, before)
			}
		}
	})
}

// TestFailingSafetyIsRetriedSoonButDoesNotSpin: killing fails again and again.
func TestFailingSafetyIsRetriedSoonButDoesNotSpin(t *testing.T) {
	inBed(t, "a", func(b *bed) {
		primaryBed(b)
		b.gone = true
		b.hooks["reset"] = func(context.Context) error { return errors.New("no such file") }
	}, func(b *bed) {
		time.Sleep(10 * time.Second)
		if n := b.count("reset"); n < 50 || n > 150 {
			b.t.Errorf("%d attempts in 10 s", n)
		}
	})
}

func TestRecruitTakesThePlaceOfWork(t *testing.T) {
	inBed(t, "b", func(b *bed) {
		standbyBed(b)
		b.obs.Conf.Phase = decide.Closed // there is something to configure
		b.hooks["configure"] = hang
	}, func(b *bed) {
		time.Sleep(time.Second)
		r, err := b.agent.Recruit(context.Background(), ep(2))
		if err != nil {
			b.t.Fatal(err)
		}
		if want := (decide.Recruit{Node: "b", Instance: "i", Promise: ep(2), Timeline: 2, Lineage: ep(1), LSN: 100}); r != want {
			b.t.Errorf("answered %+v, want %+v", r, want)
		}
		b.order("configure", "promise 1.2", "settle")
		time.Sleep(5 * time.Second)
		b.mu.Lock()
		defer b.mu.Unlock()
		if n := len(b.at["configure"]); n != 1 {
			b.t.Errorf("followed a promised-away epoch again (%d times): %v", n, b.calls)
		}
	})
}

func TestRecruitRefusals(t *testing.T) {
	for _, tc := range []struct {
		name  string
		scene func(*bed)
		e     fsm.Epoch
		why   string
	}{
		{"primary", func(b *bed) {
			b.sentinel.Primary, b.sentinel.Epoch = true, ep(1)
			b.hooks["stop"], b.hooks["reset"] = hang, hang
		}, ep(2), "under way"},
		{"stopped", func(b *bed) { b.sentinel.Postmaster = 0; b.hooks["start"] = hang }, ep(2), "not running"},
		{"no data", func(b *bed) { b.local, b.sentinel.Postmaster = decide.Local{}, 0; b.hooks["clone"] = hang }, ep(2), "creating replica is under way"},
		{"foreign data", func(b *bed) { b.local.SystemID = "x"; b.hooks["stop"] = hang }, ep(2), "under way"},
		{"promised more", func(b *bed) { b.local.Promise = ep(9) }, ep(2), "has promised"},
		{"an old state here", func(*bed) {}, ep(7), "not the one this election rests on"},
		{"granted already", func(*bed) {}, ep(1), "not the one this election rests on"},
		{"a silent sentinel", func(b *bed) { b.silent = true }, ep(2), "does not answer"},
		{"the promise fails", func(b *bed) { b.hooks["promise"] = func(context.Context) error { return errors.New("disk full") } }, ep(2), "disk full"},
		{"endless replay", func(b *bed) { b.hooks["settle"] = hang }, ep(2), "replay"},
	} {
		inBed(t, "b", standbyBed, func(b *bed) {
			time.Sleep(time.Second)
			b.set(func() { tc.scene(b) })
			time.Sleep(1500 * time.Millisecond)
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			if _, err := b.agent.Recruit(ctx, tc.e); err == nil || (!strings.Contains(err.Error(), tc.why) && !errors.Is(err, context.DeadlineExceeded)) {
				b.t.Errorf("%s: %v, want %q", tc.name, err, tc.why)
			}
			if tc.why != "disk full" && tc.why != "replay" && b.count("promise") != 0 {
				b.t.Errorf("%s: promised all the same", tc.name)
			}
		})
	}
}

// TestRecruitRecordsAPromotionThatWasNot: the node died between its promotion and the record of it.
func TestRecruitRecordsAPromotionThatWasNot(t *testing.T) {
	inBed(t, "b", func(b *bed) {
		standbyBed(b)
		b.group(func(g *fsm.Group) {
			g.Epoch, g.Lease, g.LastHolder = ep(2), fsm.Lease{}, "b"
			g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: "b"})
		})
		b.local.Lineage[0] = ep(2)
		b.obs.PG.Timeline, b.obs.PG.Streaming, b.obs.Conf.Upstream = 3, false, ""
	}, func(b *bed) {
		time.Sleep(time.Second)
		r, err := b.agent.Recruit(context.Background(), ep(3))
		if err != nil || r.Lineage != ep(2) {
			b.t.Fatalf("%+v %v", r, err)
		}
		b.order("promise 1.3", "settle", "origin 3", "lineage 3=1.2", "submit-promoted {Group:0 Epoch:1.2 Timeline:3 Parent:2")
	})
}

func TestKeepaliveIsWithheldFromASilentSentinel(t *testing.T) {
	inBed(t, "a", primaryBed, func(b *bed) {
		time.Sleep(time.Second)
		b.set(func() { b.silent = true })
		time.Sleep(time.Second)
		b.mu.Lock()
		b.beats = nil
		b.mu.Unlock()
		time.Sleep(8 * time.Second)
		b.mu.Lock()
		for _, x := range b.beats {
			if !x.Epoch.IsZero() {
				b.t.Fatalf("renews epoch %s while the sentinel is silent", x.Epoch)
			}
		}
		resets := b.at["reset"]
		b.mu.Unlock()
		if len(resets) == 0 || resets[0] > 6500*time.Millisecond {
			b.t.Fatalf("killed at %v", resets)
		}
	})
}

// TestFrozenAtTheEndOfTheLease: the sentinel can no longer kill at the end of the lease, and its silence is too young to be
// noticed. PostgreSQL does not outlive the margin.
func TestFrozenAtTheEndOfTheLease(t *testing.T) {
	restarted := func(b *bed) { primaryBed(b); b.remembers, b.deaf = ep(1), true }
	for name, prepare := range map[string]func(*bed){"all along": primaryBed, "restarted agent": restarted} {
		for before := 10 * time.Millisecond; before < decide.SentinelSilence; before += 70 * time.Millisecond {
			inBed(t, "a", prepare, func(b *bed) {
				began := time.Now()
				time.Sleep(time.Second)
				b.set(func() { b.deaf = true })
				time.Sleep(time.Second)
				left := b.agent.lease.left("i", ep(1), b.agent.cfg.Clock())
				if left < time.Second {
					b.t.Fatalf("%s: %v left", name, left)
				}
				over := time.Since(began) + left
				time.Sleep(left - before)
				b.set(func() { b.silent, b.hooks["stop"] = true, hang })
				time.Sleep(before + lease.Margin)
				b.mu.Lock()
				defer b.mu.Unlock()
				if resets := b.at["reset"]; len(resets) == 0 || resets[0] < over || resets[0] > over+lease.Margin/2 {
					b.t.Errorf("%s, frozen %v before the end at %v: killed at %v", name, before, over, resets)
				}
			})
		}
	}
}

// TestPromotionOrder: what is written, handed over and told, and when.
func TestPromotionOrder(t *testing.T) {
	inBed(t, "b", standbyBed, func(b *bed) {
		time.Sleep(time.Second)
		b.set(func() {
			b.obs.PG.Streaming, b.obs.PG.Settled, b.obs.Conf = false, true, decide.Conf{Phase: decide.Closed}
			b.group(func(g *fsm.Group) {
				g.Epoch, g.LastHolder = ep(2), "b"
				g.Lease = fsm.Lease{Holder: "b", Instance: "i", Epoch: ep(2), TTL: 5 * time.Second}
				g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: "b"})
			})
		})
		time.Sleep(200 * time.Millisecond)
		b.order("deadline 1.2", "configure closed", "lineage 0=1.2", "deadline 1.2", "promote 1.2", "promoted", "lineage 3=1.2", "slots", "submit-promoted")
		b.set(func() {
			b.group(func(g *fsm.Group) {
				g.Grants[2] = fsm.Grant{Epoch: ep(2), Holder: "b", Timeline: 3, Parent: 2, Fork: 100}
			})
		})
		time.Sleep(200 * time.Millisecond)
		b.order("submit-promoted", "configure members", "barrier", "commit 1.2", "submit-sync_confirm")
		if b.count("promote") != 1 {
			b.t.Error("promoted twice")
		}
	})
}

// TestAClaimLeavesThePresentTimeline: what it stands on rested on an older claim.
func TestAClaimLeavesThePresentTimeline(t *testing.T) {
	inBed(t, "b", standbyBed, func(b *bed) {
		time.Sleep(time.Second)
		b.set(func() {
			b.obs.PG.Streaming, b.obs.PG.Settled, b.obs.Conf = false, true, decide.Conf{Phase: decide.Closed}
			b.local.Lineage = map[fsm.Timeline]fsm.Epoch{0: ep(1)}
			granted(b)
		})
		time.Sleep(200 * time.Millisecond)
		b.order("lineage 0=1.2 2=1.1", "promote 1.2")
	})
}

func TestLineageIsWrittenBeforeFollowing(t *testing.T) {
	inBed(t, "b", standbyBed, func(b *bed) {
		time.Sleep(time.Second)
		b.set(func() {
			b.obs.PG.Settled, b.obs.PG.Streaming = true, false
			b.group(func(g *fsm.Group) {
				g.Epoch, g.Lease.Epoch = ep(2), ep(2)
				g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: "a", Timeline: 3, Parent: 2, Fork: 100})
			})
		})
		time.Sleep(time.Second)
		b.order("configure open from= ", "lineage 1=0.0 2=1.1 3=1.2", "configure open from=a 1.2")
	})
}

// TestStartWaitsForTheSentinel: before its first answer nothing is known of PostgreSQL.
func TestStartWaitsForTheSentinel(t *testing.T) {
	inBed(t, "a", func(b *bed) { primaryBed(b); b.silent = true }, func(b *bed) {
		time.Sleep(3 * time.Second)
		if b.count("reset")+b.count("stop")+b.count("start") > 0 {
			b.t.Fatalf("acts without knowing: %v", b.calls)
		}
		b.set(func() { b.silent = false })
		time.Sleep(3 * time.Second)
		if b.count("reset")+b.count("stop")+b.count("start") > 0 {
			b.t.Fatalf("a slow sentinel cost the primary: %v", b.calls)
		}
	})
	inBed(t, "a", func(b *bed) { primaryBed(b); b.silent = true }, func(b *bed) {
		time.Sleep(7 * time.Second)
		if b.count("reset") == 0 {
			b.t.Fatal("a sentinel that never answers must be replaced by the end of the lease it remembers")
		}
	})
}

// TestAnOldStateHarmsNothing: a restarted agent reads the log from the beginning.
func TestAnOldStateHarmsNothing(t *testing.T) {
	inBed(t, "a", func(b *bed) { primaryBed(b); b.state = fsm.NewState() }, func(b *bed) {
		time.Sleep(time.Second)
		b.set(func() {
			b.state = startState()
			b.group(func(g *fsm.Group) { g.Lease, g.Epoch = fsm.Lease{}, fsm.Epoch{} })
		})
		time.Sleep(time.Second)
		b.set(func() { b.state = startState() })
		time.Sleep(10 * time.Second)
		if b.count("stop")+b.count("reset")+b.count("submit-release") > 0 {
			b.t.Fatalf("an upgrade cost the primary: %v", b.calls)
		}
	})
}

func TestChangesDoNotStarveKeepalives(t *testing.T) {
	inBed(t, "a", primaryBed, func(b *bed) {
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			b.set(func() { b.obs.Pending = !b.obs.Pending })
		}
		if n := b.count("keepalive"); n < 18 || n > 60 {
			b.t.Errorf("%d keepalives in 10 s of changes", n)
		}
		synctest.Wait()
	})
}

// TestSteppingDown: a planned stop is in good order, what holds it up is ended, and the release says where it ended.
func TestSteppingDown(t *testing.T) {
	demote := func(b *bed) {
		b.set(func() {
			b.group(func(g *fsm.Group) { g.Op = &fsm.Operation{Kind: fsm.Switchover, Phase: fsm.Demote, Epoch: ep(1)} })
		})
	}
	t.Run("in good order", func(t *testing.T) {
		inBed(t, "a", func(b *bed) {
			primaryBed(b)
			b.inOrder = true
		}, func(b *bed) {
			demote(b)
			time.Sleep(200 * time.Millisecond)
			if b.count("stop") != 1 || b.count("end") != 0 {
				b.t.Errorf("calls %v", b.calls)
			}
			b.order("stop immediate=false", "ended", "submit-release {Group:0 Epoch:1.1 Reason: Timeline:2 LSN:0/63}")
		})
	})
	t.Run("on a timeline of another epoch", func(t *testing.T) {
		inBed(t, "a", func(b *bed) {
			primaryBed(b)
			b.inOrder = true
		}, func(b *bed) {
			demote(b)
			b.mu.Lock()
			b.local.Lineage = map[fsm.Timeline]fsm.Epoch{2: ep(0)}
			b.mu.Unlock()
			time.Sleep(200 * time.Millisecond)
			b.order("submit-release {Group:0 Epoch:1.1 Reason: Timeline:0 LSN:0/0}")
		})
	})
	t.Run("held up", func(t *testing.T) {
		inBed(t, "a", func(b *bed) {
			primaryBed(b)
			b.hooks["stop"] = func(ctx context.Context) error {
				if b.count("stop") == 1 {
					return hang(ctx)
				}
				return nil
			}
		}, func(b *bed) {
			demote(b)
			time.Sleep(immediateAfter - 100*time.Millisecond)
			if b.count("end") != 1 || b.count("stop") != 1 {
				b.t.Errorf("calls %v", b.calls)
			}
			time.Sleep(time.Second)
			b.order("stop immediate=false", "end senders", "stop immediate=true", "submit-release {Group:0 Epoch:1.1 Reason: Timeline:0 LSN:0/0}")
		})
	})
}

// TestRestartOfAStandby stops it; the rules start it again. A primary refuses.
func TestRestartOfAStandby(t *testing.T) {
	inBed(t, "b", func(b *bed) {
		standbyBed(b)
	}, func(b *bed) {
		time.Sleep(time.Second)
		if err := b.agent.Restart(context.Background()); err != nil {
			b.t.Fatal(err)
		}
		time.Sleep(time.Second)
		if b.count("stop") != 1 || b.count("start") == 0 {
			b.t.Errorf("calls %v", b.calls)
		}
	})
	inBed(t, "a", primaryBed, func(b *bed) {
		time.Sleep(time.Second)
		if err := b.agent.Restart(context.Background()); err == nil || b.count("stop") != 0 {
			b.t.Errorf("%v, calls %v", err, b.calls)
		}
	})
}

// Clients may wait for the word that PostgreSQL lets them in: it is not held back until the next keepalive is due.
func TestOpenIsReportedAtOnce(t *testing.T) {
	inBed(t, "a", func(b *bed) {
		primaryBed(b)
		b.obs.Conf.Phase = decide.Members
		b.hooks["configure"] = func(context.Context) error { time.Sleep(900 * time.Millisecond); return nil }
	}, func(b *bed) {
		time.Sleep(3 * time.Second)
		b.mu.Lock()
		defer b.mu.Unlock()
		i := slices.IndexFunc(b.beats, func(x Beat) bool { return x.Report.Open })
		if i < 1 {
			b.t.Fatalf("beat %d of %d is the first that says open", i, len(b.beats))
		}
		opened := b.at["configure"][0] + 900*time.Millisecond
		if late := b.at["keepalive"][i] - opened; late > 10*time.Millisecond {
			b.t.Errorf("said %s late", late)
		}
	})
}

func granted(b *bed) {
	b.obs.PG.Streaming, b.obs.PG.Settled, b.obs.Conf = false, true, decide.Conf{Phase: decide.Closed}
	b.group(func(g *fsm.Group) {
		g.Epoch, g.LastHolder = ep(2), "b"
		g.Lease = fsm.Lease{Holder: "b", Instance: "i", Epoch: ep(2), TTL: 5 * time.Second}
		g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: "b"})
	})
}

// refusing hooks refuse every promotion.
type refusing struct{ NoHooks }

func (refusing) PrePromote(context.Context, Roster, fsm.Epoch) error {
	return errors.New("hook pre_promote: exit status 1")
}

// A node whose promotion is refused gives its lease back, after its sentinel can no longer promote under it, and leaves the next to others;
// not where the agent before it made the sentinel refuse.
func TestRefusedPromotionGivesTheLeaseBack(t *testing.T) {
	refuse := func(err error) func(*bed) {
		return func(b *bed) {
			b.hooks["promote"] = func(context.Context) error { return fmt.Errorf("%w: exit status 1", err) }
		}
	}
	for _, tc := range []struct {
		name     string
		prepare  func(*bed)
		promotes bool
		unfit    string
	}{
		{"hook", func(b *bed) { b.agent.cfg.Hooks = refusing{} }, false, "exit status 1"},
		{"watchdog", refuse(ErrUnfit), true, "exit status 1"},
		{"spent", refuse(ErrSpent), true, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBed(t, "b", standbyBed, func(b *bed) {
				time.Sleep(time.Second)
				b.set(func() { tc.prepare(b) })
				b.set(func() { granted(b) })
				time.Sleep(50 * time.Millisecond)
				b.order("renounce 1.2", "submit-release")
				if got := b.count("promote") != 0; got != tc.promotes {
					b.t.Errorf("promoted: %t", got)
				}
				time.Sleep(time.Second)
				if why := b.agent.Snapshot().Report.Unfit; tc.unfit == "" && why != "" || !strings.Contains(why, tc.unfit) {
					b.t.Errorf("unfit: %q", why)
				}
			})
		})
	}
}

func TestReinit(t *testing.T) {
	inBed(t, "b", standbyBed, func(b *bed) {
		time.Sleep(time.Second)
		if err := b.agent.Reinit(context.Background(), ""); err != nil {
			b.t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.order("stop immediate=false", "clone a 1.1 prefix=")
	})
	inBed(t, "a", primaryBed, func(b *bed) {
		time.Sleep(time.Second)
		if err := b.agent.Reinit(context.Background(), ""); err == nil || b.count("stop")+b.count("clone") != 0 {
			b.t.Errorf("%v, calls %v", err, b.calls)
		}
	})
}

func TestCloneSource(t *testing.T) {
	s := startState()
	s.Nodes["c"] = fsm.Node{ID: "c", Name: "c", Report: fsm.Report{State: "streaming", Epoch: ep(1)}}
	s.Nodes["w"] = fsm.Node{ID: "w", Name: "w", Group: 1}
	s.Groups[1] = fsm.Group{ID: 1}
	for _, c := range []struct {
		self, from, want fsm.NodeID
	}{
		{"b", "", "a"},
		{"b", "c", "c"},
		{"c", "b", ""}, // does not stream
		{"b", "b", ""},
		{"b", "w", ""},
		{"b", "nobody", ""},
		{"a", "", ""}, // the primary
		{"w", "", ""}, // its group has none
	} {
		if got, err := CloneSource(s, c.self, c.from); (err == nil) != (c.want != "") || (err == nil && got.ID != c.want) {
			t.Errorf("%s from %q: %s, %v; want %q", c.self, c.from, got.ID, err, c.want)
		}
	}
}

// TestCloneOpensAStrictGroup: a strict group that nobody else can open lets its members clone before it is open; one that is not
// strict does not.
func TestCloneOpensAStrictGroup(t *testing.T) {
	for _, strict := range []bool{true, false} {
		inBed(t, "b", func(b *bed) {
			b.sentinel, b.local, b.obs = decide.Sentinel{}, decide.Local{}, Observation{}
			b.group(func(g *fsm.Group) {
				g.Strict, g.Sync = strict, fsm.Sync{Pairs: []fsm.Pair{fsm.NewPair(1, "b")}}
			})
			b.hooks["clone"] = hang
		}, func(b *bed) {
			time.Sleep(time.Second)
			if got := b.count("clone") == 1; got != strict {
				b.t.Errorf("strict %t: clones %d times, calls %v", strict, b.count("clone"), b.calls)
			}
		})
	}
}
