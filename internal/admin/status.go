package admin

import (
	"fmt"
	"time"

	"matriarch/fsm"
	"matriarch/internal/agent"
	"matriarch/internal/conductor"
	"matriarch/internal/proxy"
)

// Status is what one node knows: the replicated state as far as it has it, the control plane, and itself.
type Status struct {
	Node     fsm.NodeID                         `json:"node"`
	Name     string                             `json:"name"`
	Version  string                             `json:"version"`
	At       time.Time                          `json:"at"` // the node's clock when it answered
	State    *fsm.State                         `json:"state"`
	Raft     Raft                               `json:"raft"`
	Self     *Self                              `json:"self,omitempty"`     // nil until the first decision
	Heard    map[fsm.NodeID]time.Duration       `json:"heard_ns,omitempty"` // on the leader: since each node's last keepalive
	Plans    map[fsm.GroupID]conductor.Decision `json:"plans,omitempty"`    // on the leader
	Metadata *conductor.MetadataReport          `json:"metadata,omitempty"` // on the leader
	Proxy    []proxy.ListenerStats              `json:"proxy,omitempty"`    // the node's listeners for clients
}

// Raft is the control plane as the node sees it.
type Raft struct {
	Leader      fsm.NodeID            `json:"leader"` // empty: none is known
	Leads       bool                  `json:"leads"`  // this node is it
	State       string                `json:"state"`  // leader, follower, candidate
	Term        uint64                `json:"term"`
	Applied     uint64                `json:"applied"` // last log entry in State
	Commit      uint64                `json:"commit"`
	Suffrage    map[fsm.NodeID]string `json:"suffrage"`        // voter or nonvoter
	LastContact time.Duration         `json:"last_contact_ns"` // since the leader was last heard of; 0 on the leader
	SlowestTick time.Duration         `json:"slowest_tick_ns"` // of the last minute, on the leader
}

// Self is the node's own loop and server.
type Self struct {
	Age        time.Duration    `json:"age_ns"` // of the newest decision
	Rule       string           `json:"rule"`
	Name       string           `json:"name"`
	Reason     string           `json:"reason"`
	Since      time.Time        `json:"since"`          // when this rule began to hold
	Past       []agent.Decision `json:"past,omitempty"` // newest last
	Job        string           `json:"job,omitempty"`  // action under way
	Failed     string           `json:"failed,omitempty"`
	Instance   string           `json:"instance"`      // of the sentinel
	LeaseLeft  time.Duration    `json:"lease_left_ns"` // 0: none
	Epoch      fsm.Epoch        `json:"epoch"`         // that PostgreSQL was promoted under
	Writable   bool             `json:"writable"`      // by the sentinel's word
	Processes  Processes        `json:"processes"`
	Postmaster int              `json:"postmaster"` // pid, 0: no process of PostgreSQL
	Sentinel   string           `json:"sentinel"`   // ok, silent or gone
	Report     fsm.Report       `json:"report"`
	SetAside   []string         `json:"set_aside,omitempty"` // paths of what this node had and its group has not
	Postgres   Postgres         `json:"postgres"`
	Failsafe   *agent.Failsafe  `json:"failsafe,omitempty"` // nil: off, and it has given its word to nobody

	Slots []agent.SlotSeen `json:"slots,omitempty"` // replication slots of this server
}

// Processes are the pids and times that the node's loop does not know.
type Processes struct {
	Agent             int       `json:"agent"`
	Sentinel          int       `json:"sentinel"`
	PostmasterStarted time.Time `json:"postmaster_started,omitzero"`
}

// Postgres is what the server says of itself.
type Postgres struct {
	Reachable  bool     `json:"reachable"`
	Why        string   `json:"why,omitempty"` // when it is not
	InRecovery bool     `json:"in_recovery"`
	Streaming  bool     `json:"streaming"`
	Phase      string   `json:"phase,omitempty"` // whom it lets in: closed, members, open
	Senders    []Sender `json:"senders,omitempty"`
}

// Sender is one standby as the primary sees it.
type Sender struct {
	Node      fsm.NodeID    `json:"node"`
	Streaming bool          `json:"streaming"`
	Lag       int64         `json:"lag"` // bytes
	Missing   time.Duration `json:"missing_ns"`
}

// NewSelf makes a Self of the loop's newest decision; nil gives nil. now ages it: what was left of the lease then is less by now.
func NewSelf(snap *agent.Snapshot, now time.Time, p Processes) *Self {
	if snap == nil {
		return nil
	}
	v := snap.View
	s := &Self{
		Age: max(now.Sub(snap.At), 0), Rule: snap.Plan.Rule, Name: snap.Plan.Name, Reason: snap.Plan.Reason, Since: snap.At, Past: snap.Past,
		Job: v.Job, Failed: v.Failed, Instance: v.Instance, Epoch: v.Sentinel.Epoch, Writable: v.Sentinel.Primary, Processes: p,
		Postmaster: v.Sentinel.Postmaster, Sentinel: "ok", Report: snap.Report, SetAside: snap.Aside,
		Slots: snap.Slots,
	}
	s.LeaseLeft = max(v.LeaseLeft-s.Age, 0)
	if n := len(snap.Past); n > 0 && snap.Past[n-1].Rule == s.Rule {
		s.Since = snap.Past[n-1].At
	}
	switch {
	case !v.Sentinel.Connected:
		s.Sentinel = "gone"
	case v.Sentinel.Silent > time.Second:
		s.Sentinel = fmt.Sprintf("silent for %s", v.Sentinel.Silent.Round(100*time.Millisecond))
	}
	s.Postgres = Postgres{Reachable: v.PG.Reachable, Why: v.PG.Why, InRecovery: v.PG.InRecovery, Streaming: v.PG.Streaming, Phase: string(v.Conf.Phase)}
	for _, x := range v.PG.Senders {
		s.Postgres.Senders = append(s.Postgres.Senders, Sender{Node: x.Node, Streaming: x.Streaming, Lag: x.Lag, Missing: x.Missing})
	}
	return s
}

// Me is the node's own entry in the state; ok is false before the state has reached it.
func (st Status) Me() (fsm.Node, bool) {
	if st.State == nil {
		return fsm.Node{}, false
	}
	n, ok := st.State.Nodes[st.Node]
	return n, ok
}

// Writable reports whether clients may write here: the lease is valid and PostgreSQL is open under it. If not, why.
func (st Status) Writable() (bool, string) {
	n, ok := st.Me()
	if !ok {
		return false, "the node is not a member of the cluster, or has no copy of its state yet"
	}
	g := st.State.Groups[n.Group]
	switch self := st.Self; {
	case g.Lease.Holder != n.ID:
		return false, "the node does not hold the lease of its group"
	case self == nil || self.LeaseLeft <= 0:
		return false, "the lease is not confirmed, or over"
	case g.Lease.Revoked:
		return false, "the lease is revoked"
	case !self.Writable || !self.Postgres.Reachable || self.Postgres.InRecovery:
		return false, "PostgreSQL is not writable yet"
	case self.Epoch != g.Epoch || !g.Opened():
		return false, fmt.Sprintf("epoch %s has not made its first synchronous commit yet", g.Epoch)
	}
	return true, ""
}

// Public is a copy for the wire, without what nobody needs to see.
func (st Status) Public() Status {
	if st.State == nil {
		return st
	}
	s := *st.State
	s.Requests, s.Tokens = nil, map[string]fsm.Token{}
	for id, t := range st.State.Tokens {
		t.Hash = ""
		s.Tokens[id] = t
	}
	st.State = &s
	return st
}
