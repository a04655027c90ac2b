package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

const (
	changeTimeout = 5 * time.Second
	nearlyAll     = 250 // entries a node may lack and still count as caught up
)

// steward keeps Raft's servers equal to the state's nodes, the voters as decided, and leadership off hosts that hold leases.
func (n *Node) steward(ctx context.Context, t *term) {
	every := time.NewTicker(stewardEvery)
	defer every.Stop()
	leases, changed := held(n.State()), t.ready
	for {
		s := n.State()
		if now := held(s); !slices.Equal(now, leases) {
			leases, changed = now, time.Now()
		}
		if !n.reconcile(t, s) && time.Since(changed) >= leaseSettle {
			n.moveAway(t, s)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// held lists the leases in a form that can be compared.
func held(s *fsm.State) []fsm.Lease {
	var out []fsm.Lease
	for _, id := range s.GroupIDs() {
		out = append(out, s.Groups[id].Lease)
	}
	return out
}

// reconcile makes at most one change, and reports whether it made one.
func (n *Node) reconcile(t *term, s *fsm.State) bool {
	f := t.rf.GetConfiguration()
	if f.Error() != nil || s.Cluster.ID == "" {
		return false
	}
	servers := f.Configuration().Servers
	for _, id := range s.NodeIDs() {
		if !slices.ContainsFunc(servers, func(v raft.Server) bool { return v.ID == raft.ServerID(id) }) {
			return n.change(t, "node joins Raft", id, "", t.rf.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), f.Index(), changeTimeout))
		}
	}
	electors := n.electors(t, s, servers)
	for _, v := range servers {
		if _, member := s.Nodes[fsm.NodeID(v.ID)]; member {
			continue
		}
		if fsm.NodeID(v.ID) == n.cfg.ID {
			return n.moveTo(t, electors, "this node was removed from the cluster")
		}
		if v.Suffrage != raft.Voter || decide.MayLose(electors, fsm.NodeID(v.ID)) {
			return n.change(t, "node leaves Raft", fsm.NodeID(v.ID), "", t.rf.RemoveServer(v.ID, f.Index(), changeTimeout))
		}
	}
	c := decide.Voters(electors, s.Cluster.Settings.DeadVoterAfter)
	switch id := raft.ServerID(c.Node); {
	case c.Op == decide.AddVoter:
		return n.change(t, "node becomes a voter", c.Node, c.Reason, t.rf.AddVoter(id, raft.ServerAddress(c.Node), f.Index(), changeTimeout))
	case c.Op == decide.DemoteVoter && c.Node == n.cfg.ID:
		return n.moveTo(t, electors, c.Reason)
	case c.Op == decide.DemoteVoter:
		return n.change(t, "node is a voter no more", c.Node, c.Reason, t.rf.DemoteVoter(id, f.Index(), changeTimeout))
	}
	return false
}

// change waits for a change of the servers. An entry follows at once: when replication overtakes the change, the library counts
// what a new voter has only from the next entry on, and in a silent cluster there might never be one.
func (n *Node) change(t *term, what string, id fsm.NodeID, reason string, f raft.IndexFuture) bool {
	if err := errors.Join(t.rf.Barrier(changeTimeout).Error(), f.Error()); err != nil {
		n.cfg.Log.Debug("change of Raft's servers not made", "change", what, "node", id, "error", err)
		return true // look again before anything else is done
	}
	n.cfg.Log.Info("servers change", "what", what, "node", id, "name", n.State().Name(id), "reason", reason)
	return true
}

// electors is how the leader sees all servers. A voter that is no member any more counts as unfit.
func (n *Node) electors(t *term, s *fsm.State, servers []raft.Server) []decide.Elector {
	last := t.rf.LastIndex()
	var out []decide.Elector
	for _, v := range servers {
		id := fsm.NodeID(v.ID)
		node, member := s.Nodes[id]
		e := decide.Elector{
			ID: id, Name: s.Name(id), Group: node.Group, Zone: node.Zone, NeverVoter: node.Tags.NeverVoter || !member,
			Voter: v.Suffrage == raft.Voter, Leader: id == n.cfg.ID, CaughtUp: id == n.cfg.ID,
		}
		if !e.Leader {
			heard, match := n.net.contacts.of(id, t.number)
			if heard.Before(t.ready) {
				heard = t.ready // an earlier leader may have heard it
			}
			e.Heard, e.CaughtUp = time.Since(heard), match > 0 && match+nearlyAll >= last
		}
		out = append(out, e)
	}
	return out
}

// moveAway gives leadership to a voter whose host holds no lease when this one holds one: the loss of a primary's host shall not
// cost an election of the leader, too.
func (n *Node) moveAway(t *term, s *fsm.State) {
	if !s.Cluster.Settings.LeaderAvoid || !holdsLease(s, n.cfg.ID) || time.Since(n.moved) < moveEvery {
		return
	}
	f := t.rf.GetConfiguration()
	if f.Error() != nil {
		return
	}
	free := slices.DeleteFunc(n.electors(t, s, f.Configuration().Servers), func(e decide.Elector) bool { return holdsLease(s, e.ID) })
	n.moveTo(t, free, "this host holds a lease, the other none")
}

// TransferLeader hands this node's leadership to another voter, or, when to is empty, to the best that holds no lease. It answers to whom.
// Errors: this node does not lead, or nobody fit was found; then nothing has changed. A transfer that fails leaves an election at worst.
func (n *Node) TransferLeader(to fsm.NodeID) (fsm.NodeID, error) {
	t, err := n.leading()
	if err != nil {
		return "", err
	}
	s, f := n.State(), t.rf.GetConfiguration()
	if err := f.Error(); err != nil {
		return "", fmt.Errorf("transfer leadership: %w", err)
	}
	all := n.electors(t, s, f.Configuration().Servers)
	best, ok := decide.Successor(slices.DeleteFunc(slices.Clone(all), func(e decide.Elector) bool {
		return to != "" && e.ID != to || to == "" && holdsLease(s, e.ID)
	}))
	switch {
	case !ok && to != "":
		return "", fmt.Errorf("transfer leadership: %s cannot lead now: it must be another voter that answers and has nearly all of the log; 'matriarch list' shows the voters", s.Name(to))
	case !ok:
		if best, ok = decide.Successor(all); !ok {
			return "", errors.New("transfer leadership: no other voter answers and has nearly all of the log: 'matriarch list' shows the voters")
		}
	}
	n.cfg.Log.Info("leadership moves", "to", best.ID, "name", best.Name, "reason", "an operator asked for it")
	if err := n.handedOver(t.to(best.ID)); err != nil {
		return "", fmt.Errorf("transfer leadership to %s: %w", best.Name, err)
	}
	return best.ID, nil
}

// to begins to hand leadership over to a voter.
func (t *term) to(id fsm.NodeID) func() raft.Future {
	return func() raft.Future { return t.rf.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(id)) }
}

func holdsLease(s *fsm.State, id fsm.NodeID) bool {
	return slices.ContainsFunc(held(s), func(l fsm.Lease) bool { return l.Holder == id })
}

// moveTo hands leadership to the best of the healthy voters, at most once in moveEvery.
func (n *Node) moveTo(t *term, electors []decide.Elector, reason string) bool {
	to, ok := decide.Successor(electors)
	if !ok || time.Since(n.moved) < moveEvery {
		return false
	}
	n.moved = time.Now()
	n.cfg.Log.Info("leadership moves", "to", to.ID, "name", to.Name, "reason", reason)
	n.transfer(t.to(to.ID))
	return true
}
