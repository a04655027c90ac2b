package admin

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"matriarch/fsm"
)

// Roles of a member, as list shows them.
const (
	RolePrimary       = "Primary"
	RoleQuorumStandby = "Quorum Standby" // in the synchronous set
	RoleStandby       = "Standby"
)

// silentAfter is how long a node may send no keepalive before it is shown as silent.
const silentAfter = 3 * time.Second

// Member is one node as list shows it.
type Member struct {
	Group      fsm.GroupID    `json:"group"`
	Name       string         `json:"member"`
	ID         fsm.NodeID     `json:"id"`
	Host       string         `json:"host"` // host:port of PostgreSQL
	Peer       string         `json:"peer"`
	API        string         `json:"api"`
	Role       string         `json:"role"`
	State      string         `json:"state"`
	Timeline   fsm.Timeline   `json:"tl"`
	ReceiveLSN string         `json:"receive_lsn,omitempty"`
	ReceiveLag *int64         `json:"receive_lag,omitempty"` // bytes behind the primary; nil: unknown, or the primary itself
	ReplayLSN  string         `json:"replay_lsn,omitempty"`
	ReplayLag  *int64         `json:"replay_lag,omitempty"`
	Tags       map[string]any `json:"tags,omitempty"`
	Zone       string         `json:"zone,omitempty"`
	Version    string         `json:"version,omitempty"`
	Fence      string         `json:"fence,omitempty"`
	Pending    bool           `json:"pending_restart,omitempty"`
	SetAside   int            `json:"set_aside,omitempty"`
	Slots      string         `json:"slots,omitempty"`    // what is wrong with its replication slots
	Copied     int64          `json:"copied,omitempty"`   // bytes of a clone under way
	ToCopy     int64          `json:"to_copy,omitempty"`  // its size
	Unfit      string         `json:"unfit,omitempty"`    // why it must not become primary just now
	Sick       string         `json:"sick,omitempty"`     // what ails its PostgreSQL or its disks, with the remedy
	Watchdog   string         `json:"watchdog,omitempty"` // mode and state
	Silent     bool           `json:"silent,omitempty"`   // no keepalive lately, by the leader's word
	Suffrage   string         `json:"suffrage,omitempty"`
}

// Members lists the nodes by group, in each the primary first, then the synchronous standbys, then by name.
func Members(st Status) []Member {
	s := st.State
	out := make([]Member, 0, len(s.Nodes))
	for _, id := range s.NodeIDs() {
		out = append(out, member(st, s.Nodes[id]))
	}
	rank := map[string]int{RolePrimary: 0, RoleQuorumStandby: 1, RoleStandby: 2}
	slices.SortFunc(out, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(rank[a.Role], rank[b.Role]), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func member(st Status, n fsm.Node) Member {
	g := st.State.Groups[n.Group]
	r := n.Report
	m := Member{
		Group: n.Group, Name: n.Name, ID: n.ID, Host: n.Postgres, Peer: n.Peer, API: n.API, Role: roleOf(g, n.ID), State: r.State, Timeline: r.Timeline,
		Tags: TagMap(n.Tags), Zone: n.Zone, Version: n.Version, Fence: r.Fence, Pending: r.Pending, SetAside: r.SetAside, Slots: r.Slots,
		Copied: r.Copied, ToCopy: r.ToCopy, Unfit: r.Unfit, Sick: r.SickText, Watchdog: r.Watchdog, Suffrage: st.Raft.Suffrage[n.ID],
	}
	m.State += Progress(r)
	if r.State == "" {
		m.State = "not heard of yet"
	}
	if ago, known := st.Silence(n.ID); known {
		m.Silent = true
		m.State = "silent"
		if ago > 0 {
			m.State = fmt.Sprintf("silent for %s", ago.Round(time.Second))
		}
	}
	if r.Receive != 0 && m.Role != RolePrimary { // a former standby still remembers
		m.ReceiveLSN = r.Receive.String()
	}
	if r.Replay != 0 {
		m.ReplayLSN = r.Replay.String()
	}
	if primary, ok := st.State.Nodes[g.Lease.Holder]; ok && m.Role != RolePrimary && primary.Report.Replay != 0 {
		m.ReceiveLag, m.ReplayLag = lag(primary.Report.Replay, r.Receive), lag(primary.Report.Replay, r.Replay)
	}
	return m
}

// Progress is how far a node's clone has come, in words; empty when there is none.
func Progress(r fsm.Report) string {
	if r.ToCopy <= 0 {
		return ""
	}
	return fmt.Sprintf(" %d %%, %d of %d MB", min(100, 100*r.Copied/r.ToCopy), r.Copied>>20, r.ToCopy>>20)
}

// Silence reports whether the leader misses a node's keepalives, and for how long; 0 when it has not heard it in its term.
func (st Status) Silence(n fsm.NodeID) (time.Duration, bool) {
	if !st.Raft.Leads || len(st.Heard) == 0 {
		return 0, false // only the leader knows
	}
	ago, heard := st.Heard[n]
	return ago, !heard || ago > silentAfter
}

func roleOf(g fsm.Group, id fsm.NodeID) string {
	switch {
	case g.Lease.Holder == id:
		return RolePrimary
	case g.Sync.Target().Has(id) && !g.Sync.Unknown:
		return RoleQuorumStandby
	}
	return RoleStandby
}

func lag(primary, at fsm.LSN) *int64 {
	if at == 0 {
		return nil
	}
	n := max(int64(primary)-int64(at), 0)
	return &n
}

// TagMap is a node's tags as people wrote them: only those that are set.
func TagMap(t fsm.Tags) map[string]any {
	out := map[string]any{}
	for k, v := range t.User {
		out[k] = v
	}
	for k, on := range map[string]bool{
		"nofailover": t.NoFailover, "nosync": t.NoSync, "noloadbalance": t.NoLoadBalance, "clonefrom": t.CloneFrom, "never_voter": t.NeverVoter,
	} {
		if on {
			out[k] = true
		}
	}
	if t.FailoverPriority > 1 {
		out["failover_priority"] = t.FailoverPriority
	}
	if t.SyncPriority > 0 {
		out["sync_priority"] = t.SyncPriority
	}
	return out
}
