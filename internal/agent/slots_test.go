package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

func withSlot(b *bed) {
	b.group(func(g *fsm.Group) { g.Slots = []fsm.Slot{{Name: "archive", Type: fsm.Physical}} })
}

func TestPermanentSlotsAreKept(t *testing.T) {
	for _, tc := range []struct {
		name    string
		self    fsm.NodeID
		prepare func(*bed)
		want    string // empty: nothing
	}{
		{"on the primary", "a", func(b *bed) { primaryBed(b); withSlot(b) }, "keep-slots a of a"},
		{"on a standby", "b", func(b *bed) { standbyBed(b); withSlot(b) }, "keep-slots b of a"},
		{"none are wanted", "a", primaryBed, ""},
		{"a failover slot of a former primary", "b", func(b *bed) {
			standbyBed(b)
			b.obs.Slots = []SlotSeen{{Name: "theirs", Failover: true}}
		}, "keep-slots b of a"},
		{"somebody's slot", "b", func(b *bed) { standbyBed(b); b.obs.Slots = []SlotSeen{{Name: "theirs"}} }, ""},
		{"not streaming", "b", func(b *bed) { standbyBed(b); withSlot(b); b.obs.PG.Streaming = false }, ""},
		{"not open yet", "a", func(b *bed) {
			primaryBed(b)
			withSlot(b)
			b.group(func(g *fsm.Group) { g.Sync.Confirmed = fsm.Epoch{} })
			b.hooks["barrier"] = hang
		}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBed(t, tc.self, tc.prepare, func(b *bed) {
				time.Sleep(2*slotPace + time.Second)
				synctest.Wait()
				if n := b.count("keep-slots"); (n > 0) != (tc.want != "") || n > 3 {
					t.Errorf("looked %d times: %v", n, b.calls)
				}
				if tc.want != "" {
					b.order(tc.want)
				}
			})
		})
	}
}

func TestWhatIsMadeIsRecorded(t *testing.T) {
	inBed(t, "a", func(b *bed) { primaryBed(b); withSlot(b); b.made = []string{"archive"} }, func(b *bed) {
		time.Sleep(slotPace + time.Second)
		synctest.Wait()
		b.order("keep-slots", "submit-slot_made {Group:0 Name:archive}")
	})
}

// TestAbsentMembersLoseTheirSlots: only by the leader's word, and not before the agent itself has watched for so long.
func TestAbsentMembersLoseTheirSlots(t *testing.T) {
	inBed(t, "a", func(b *bed) {
		primaryBed(b)
		b.state.Cluster.Settings.MemberSlotsTTL = 5 * time.Minute
		b.present = []fsm.NodeID{"a", "b"}
	}, func(b *bed) {
		ttl := b.state.Cluster.Settings.MemberSlotsTTL
		absent := func() (out []fsm.NodeID) {
			synctest.Wait()
			s := b.agent.cfg.Control.State()
			return b.agent.roster(s).Absent
		}
		time.Sleep(2 * ttl)
		if got := absent(); len(got) != 0 {
			t.Fatalf("%v are absent, whom the leader hears of", got)
		}
		b.set(func() { b.present = []fsm.NodeID{"a"} })
		time.Sleep(ttl - time.Minute)
		if got := absent(); len(got) != 0 {
			t.Fatalf("%v are absent too early", got)
		}
		time.Sleep(2 * time.Minute)
		if got := fmt.Sprint(absent()); got != "[b]" {
			t.Fatalf("%s are absent, want b", got)
		}
		b.set(func() { b.present = []fsm.NodeID{"a", "b"} })
		time.Sleep(time.Second)
		if got := absent(); len(got) != 0 {
			t.Fatalf("%v are absent, who are back", got)
		}
		b.set(func() { b.present = nil }) // an older leader
		time.Sleep(2 * ttl)
		if got := absent(); len(got) != 0 {
			t.Fatalf("%v are absent, of whom the leader says nothing", got)
		}
	})
}

func TestUnreadySlotsGoBeforeAnybodyComes(t *testing.T) {
	inBed(t, "b", func(b *bed) {
		standbyBed(b)
		b.group(func(g *fsm.Group) {
			g.Epoch, g.LastHolder, g.Lease = ep(2), "b", fsm.Lease{Holder: "b", Instance: "i", Epoch: ep(2), TTL: 5 * time.Second}
			g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: "b"})
		})
		b.obs.PG.Settled, b.obs.PG.Streaming, b.obs.Conf = true, false, decide.Conf{Phase: decide.Closed}
	}, func(b *bed) {
		time.Sleep(time.Second)
		synctest.Wait()
		b.order("promote", "promoted", "slots", "drop-unready", "submit-promoted")
	})
}

// TestAStrictPrimaryIsRewoundTo: it cannot open before the former primary is back, which has something to take back first.
func TestAStrictPrimaryIsRewoundTo(t *testing.T) {
	for _, strict := range []bool{true, false} {
		inBed(t, "b", func(b *bed) {
			standbyBed(b)
			b.group(func(g *fsm.Group) {
				g.Strict, g.Epoch, g.Lease.Epoch, g.Lease.Instance = strict, ep(2), ep(2), "ia"
				g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: "a", Timeline: 3, Parent: 2, Fork: 90})
				g.Sync.Pairs = append(g.Sync.Pairs, fsm.NewPair(1, "b"))
			})
			b.local.Promise = ep(2)
			b.obs.PG.Settled, b.obs.PG.Streaming, b.obs.Conf = true, false, decide.Conf{Phase: decide.Closed}
			b.hooks["rewind"] = hang
		}, func(b *bed) {
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if got := b.count("rewind") > 0; got != strict {
				t.Errorf("strict %v: %v", strict, b.calls)
			}
		})
	}
}

func TestAStandbyIsNotStoppedForACloneThatDoesNotFit(t *testing.T) {
	inBed(t, "b", func(b *bed) {
		standbyBed(b)
		b.obs.PG.Streaming, b.obs.PG.WALRemoved = false, true
		b.hooks["room"] = func(context.Context) error { return errors.New("not enough room") }
	}, func(b *bed) {
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if b.count("room") == 0 || b.count("stop") > 0 || b.count("clone") > 0 {
			t.Errorf("%v", b.calls)
		}
		if p := b.agent.Snapshot().Plan; p.Rule != "R126" || p.Reason == "" {
			t.Errorf("explain shows %+v", p)
		}
		b.set(func() { delete(b.hooks, "room") })
		time.Sleep(15 * time.Second)
		synctest.Wait()
		b.order("room a", "stop", "clone a") // asked again
	})
}
