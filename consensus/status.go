package consensus

import (
	"strings"
	"time"

	"matriarch/fsm"
)

// Status describes this node's part in Raft, for people.
type Status struct {
	Leader      fsm.NodeID            `json:"leader"` // empty: none known
	LeaderAddr  string                `json:"leader_addr"`
	Leading     bool                  `json:"leading"` // this node leads and is ready
	Term        uint64                `json:"term"`
	Applied     uint64                `json:"applied"` // index of the newest entry in the state
	Commit      uint64                `json:"commit"`
	Suffrage    map[fsm.NodeID]string `json:"suffrage"`     // voter or nonvoter
	LastContact time.Duration         `json:"last_contact"` // since the leader was heard of; 0 on the leader, negative: never
	SlowestTick time.Duration         `json:"slowest_tick"` // longest commit of the last minute; on the leader only
	Peers       map[fsm.NodeID]string `json:"peers"`        // where this node would look for the others
}

// Status tells how this node stands. It never blocks for long.
func (n *Node) Status() Status {
	s := Status{Suffrage: map[fsm.NodeID]string{}, Peers: map[fsm.NodeID]string{}, Applied: n.State().Index, LastContact: -1}
	for _, id := range n.book.peers() {
		s.Peers[id] = n.book.addr(id)
	}
	rf := n.raft.Load()
	if rf == nil {
		return s
	}
	s.Leader, s.Term, s.Commit = n.leader(), rf.CurrentTerm(), rf.CommitIndex()
	s.LeaderAddr = n.book.addr(s.Leader)
	if s.Leader == n.cfg.ID {
		s.LeaderAddr = n.cfg.Advertise
	}
	if f := rf.GetConfiguration(); f.Error() == nil {
		for _, v := range f.Configuration().Servers {
			s.Suffrage[fsm.NodeID(v.ID)] = strings.ToLower(v.Suffrage.String())
		}
	}
	if t := n.term.Load(); t != nil {
		s.Leading, s.SlowestTick, s.LastContact = true, t.slow.get(), 0
	} else if at := rf.LastContact(); !at.IsZero() {
		s.LastContact = time.Since(at)
	}
	return s
}
