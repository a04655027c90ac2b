package consensus

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
)

// A voter that is silent for longer than the setting is replaced; the other one gets its vote first.
func TestDeadVoterIsReplacedAddFirst(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2, 2)
		l := h.leader()
		suffrage := func(p *peer) string { return l.Status().Suffrage[p.id] }
		var dead, spare *peer
		for _, p := range others(all, l) {
			if suffrage(p) == "voter" {
				dead = p
			} else {
				spare = p
			}
		}
		h.kill(dead)
		died := time.Now()
		most := 0
		h.eventually(2*time.Minute, "the spare has a vote", func() bool {
			most = max(most, h.voters(l))
			return suffrage(spare) == "voter"
		})
		if took := time.Since(died); took < 59*time.Second || took > 70*time.Second {
			t.Errorf("replaced after %s, the setting is a minute", took)
		}
		h.eventually(10*time.Second, "the dead one has none", func() bool {
			most = max(most, h.voters(l))
			return suffrage(dead) == "nonvoter"
		})
		if most != 4 {
			t.Errorf("at most %d voters at a time, want 4: the replacement comes first", most)
		}
		h.restart(dead)
		time.Sleep(20 * time.Second)
		if h.leader() != l || suffrage(dead) != "nonvoter" || h.voters(l) != 3 {
			t.Error("a vote went back: sitting voters stay")
		}
	})
}

func TestNoGroupHasAMajority(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 0, 0, 1, 1, 2, 2)
		h.eventually(30*time.Second, "five voters, at most two of a group", func() bool {
			l := h.leader()
			count := map[fsm.GroupID]int{}
			for _, p := range all {
				if l.Status().Suffrage[p.id] == "voter" {
					count[l.State().Nodes[p.id].Group]++
				}
			}
			return h.voters(l) == 5 && max(count[0], count[1], count[2]) <= 2
		})
	})
}

// The leader's own removal: it hands leadership over, and the next one takes it out.
func TestRemovedLeaderLeaves(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		old := h.leader()
		h.submit(old, fsm.NodeRemove{Node: old.id})
		h.eventually(30*time.Second, "another leader without it", func() bool {
			l := h.leader()
			_, in := l.Status().Suffrage[old.id]
			return l != old && !in
		})
		if n := h.voters(others(all, old)[0]); n > 2 {
			t.Errorf("%d voters", n)
		}
		h.eventually(10*time.Second, "it hears that it was removed", func() bool {
			a, err := old.beat(0, "i", fsm.Epoch{})
			return err == nil && a.Removed
		})
	})
}

// Leadership leaves a host with a lease, but not within 10 s of a change of a lease, and stays where it is free.
func TestLeaderAvoidsLeases(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		h.avoid = true
		h.cluster(0, 1, 2)
		time.Sleep(time.Minute)
		old := h.leader()
		g := old.State().Nodes[old.id].Group
		e := h.grant(old, g, "i")
		defer old.beats(g, "i", e)()
		granted := time.Now()
		h.eventually(time.Minute, "another leader", func() bool { return old.term.Load() == nil })
		if took := time.Since(granted); took < leaseSettle || took > 2*leaseSettle {
			t.Errorf("leadership moved %s after the grant", took)
		}
		now := h.leader()
		time.Sleep(2 * time.Minute)
		if h.leader() != now {
			t.Error("leadership moved again without a reason")
		}
		if !now.State().Groups[g].Held() {
			t.Error("the lease was lost on the way")
		}
	})
}

// An operator moves leadership: to whom he names, else to a voter without a lease. Nobody is elected for it that cannot lead.
func TestTransferLeader(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		h.cluster(0, 1, 2)
		time.Sleep(time.Minute)
		first := h.leader()
		var others []*peer
		for _, p := range h.nodes {
			if p != first {
				others = append(others, p)
			}
		}
		if _, err := others[0].TransferLeader(first.id); err == nil {
			t.Error("a node that does not lead gave leadership away")
		}
		busy, free := others[0], others[1]
		g := busy.State().Nodes[busy.id].Group
		defer busy.beats(g, "i", h.grant(busy, g, "i"))()
		// Raft may give a transfer up: then whoever leads is asked again.
		move := func(from *peer, to fsm.NodeID, want *peer) {
			t.Helper()
			h.eventually(15*time.Second, string(want.id)+" leads", func() bool {
				by := h.leader()
				if by == want {
					return true
				}
				got, err := by.TransferLeader(to)
				switch {
				case err != nil:
					t.Logf("asked again: %v", err)
				case by == from && got != want.id:
					t.Fatalf("leadership goes to %s, not to %s", got, want.id)
				}
				return false
			})
		}
		move(first, "", free) // holds no lease
		move(free, busy.id, busy)
		h.kill(free)
		time.Sleep(10 * time.Second)
		if _, err := busy.TransferLeader(free.id); err == nil || busy.term.Load() == nil {
			t.Errorf("a dead node took leadership over: %v", err)
		}
	})
}

// A single survivor becomes a cluster of one: everything is there, in a new incarnation, leases with a full TTL.
func TestRecover(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		h.grant(all[1], 1, "i")
		h.submit(all[1], fsm.TokenPut{Token: fsm.Token{ID: "kept", Uses: 3}})
		survivor := all[2]
		h.eventually(time.Second, "the survivor has it", func() bool { return survivor.State().Tokens["kept"].Uses == 3 })
		for _, p := range all {
			h.kill(p)
		}
		seen, index, term, err := Inspect(survivor.dir)
		if err != nil || index == 0 || term == 0 || seen.Tokens["kept"].Uses != 3 {
			t.Fatalf("inspect: index %d, term %d, %v", index, term, err)
		}
		s, err := Recover(survivor.dir, survivor.id)
		if err != nil || s.Tokens["kept"].Uses != 3 || s.Cluster.Incarnation != 1 {
			t.Fatalf("recover: %+v, %v", s, err)
		}
		h.inc = 2
		h.restart(survivor)
		l := h.leader()
		ready := l.term.Load().ready
		s = l.State()
		if s.Cluster.Incarnation != 2 || !s.Groups[1].Sync.Unknown || s.Tokens["kept"].Uses != 3 || h.voters(l) != 1 {
			t.Errorf("recovered: incarnation %d, sync %+v, %d voters", s.Cluster.Incarnation, s.Groups[1].Sync, h.voters(l))
		}
		h.eventually(time.Minute, "the old lease ends", func() bool { return !l.State().Groups[1].Held() })
		if took := time.Since(ready); took < 5*time.Second {
			t.Errorf("the old lease ended after %s", took)
		}
		if e := h.grant(l, 2, "j"); e.Inc != 2 {
			t.Errorf("first epoch of the new incarnation is %s", e)
		}

		// One of the old incarnation comes back: it finds no entrance, and does no harm.
		h.inc = 1
		h.restart(all[0])
		time.Sleep(10 * time.Second)
		if h.leader() != l {
			t.Error("the old incarnation took over")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := all[0].Submit(ctx, fsm.TokenDrop{ID: "kept"}); err == nil {
			t.Error("the old incarnation was served")
		}
	})
}

func TestRecoverNeedsAState(t *testing.T) {
	if _, err := Recover(t.TempDir(), "a"); err == nil {
		t.Error("recovered an empty folder")
	}
	if _, _, _, err := Inspect(t.TempDir()); err == nil {
		t.Error("inspected an empty folder")
	}
}

func TestBootstrapOnce(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		p := h.cluster(0)[0]
		h.stop(p)
		h.open(p.id, p.addr)
		if err := p.Bootstrap(fsm.Bootstrap{ClusterID: "another"}); err == nil {
			t.Error("bootstrapped twice")
		}
		p.run()
		if h.leader().State().Cluster.ID != clusterID {
			t.Error("another cluster")
		}
	})
}

// A state that was saved becomes a cluster again, in a new incarnation, and takes members.
func TestRestore(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		p := h.cluster(0)[0]
		h.submit(p, fsm.TokenPut{Token: fsm.Token{ID: "kept", Uses: 3}})
		s := p.State()
		h.stop(p)
		if err := Restore(p.dir, p.id, s); err == nil {
			t.Error("restored over a state")
		}
		p.dir = filepath.Join(t.TempDir(), "new")
		if err := Restore(p.dir, p.id, s); err != nil {
			t.Fatal(err)
		}
		h.inc = 2
		h.restart(p)
		l := h.leader()
		if got := l.State(); got.Cluster.Incarnation != 2 || got.Tokens["kept"].Uses != 3 || got.Index <= s.Index {
			t.Errorf("restored: incarnation %d, index %d after %d", got.Cluster.Incarnation, got.Index, s.Index)
		}
		h.submit(l, fsm.TokenPut{Token: fsm.Token{ID: "tok", Uses: 3}})
		h.join(l, "z", h.addr("z", 8), 0)
		h.eventually(time.Minute, "the new member has the state", func() bool { return h.nodes["z"].State().Tokens["kept"].Uses == 3 })
	})
}

// What some node's binary may not know does not get into the log, whoever proposes it.
func TestGateHolds(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1)
		data, err := fsm.Encode(fsm.TokenDrop{ID: "x"}, "id", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		newer := bytes.Replace(data, []byte(`"v":1`), []byte(`"v":9`), 1)
		for _, p := range all {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			var ans proposeAnswer
			err := p.book.call(ctx, h.leader().id, "propose", proposeRequest{newer}, &ans)
			cancel()
			if p != h.leader() && (err == nil || !strings.Contains(err.Error(), "upgrade every node")) {
				t.Errorf("a follower's newer command: %v", err)
			}
		}
		if err := submittable(newer, 1); err == nil || submittable(newer, 9) != nil || submittable(data, 1) != nil {
			t.Errorf("submittable: %v", err)
		}
	})
}
