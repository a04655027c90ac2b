package admin

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/conductor"
	"matriarch/pgmanager/fence"
)

// Formation is the whole cluster as list and status show it.
type Formation struct {
	ClusterID   string                    `json:"cluster_id"`
	Incarnation uint64                    `json:"incarnation"`
	AnsweredBy  string                    `json:"answered_by"`
	At          time.Time                 `json:"at"`
	Index       uint64                    `json:"index"` // last log entry in the picture
	Members     []Member                  `json:"members"`
	Groups      []Group                   `json:"groups"`
	Raft        RaftView                  `json:"raft"`
	Metadata    *conductor.MetadataReport `json:"metadata,omitempty"`
	Healthy     bool                      `json:"healthy"`
	Troubles    []string                  `json:"troubles,omitempty"` // what keeps it from being healthy, one sentence each
	Notes       []string                  `json:"notes,omitempty"`    // what an operator should know besides
}

// Group is one replication set.
type Group struct {
	ID        fsm.GroupID    `json:"group"`
	Mode      fsm.Mode       `json:"mode"`
	Primary   string         `json:"primary"` // name of the holder of the lease; empty: none
	Open      bool           `json:"open"`    // clients may write
	Epoch     string         `json:"epoch"`
	Sync      string         `json:"sync"`            // the pair in force: any 1 of (a, b)
	Joint     []string       `json:"joint,omitempty"` // all pairs, while a change is under way
	Strict    bool           `json:"strict,omitempty"`
	SyncCount int            `json:"synchronous_node_count"`
	SyncLag   int64          `json:"maximum_lag_on_syncnode,omitempty"` // bytes; 0: no limit
	Waiting   bool           `json:"waiting,omitempty"`                 // strict, and commits wait for a standby
	Paused    bool           `json:"paused,omitempty"`
	Early     string         `json:"early_failover,omitempty"` // yes, or why a failover now would have to wait for the end of the lease; when the leader answered
	Retired   bool           `json:"retired,omitempty"`        // left the Citus metadata
	Degraded  bool           `json:"degraded,omitempty"`       // commits wait for fewer than they should although there is somebody to wait for
	Operation *OperationView `json:"operation,omitempty"`
	Planned   *OperationView `json:"planned,omitempty"` // waits for its time
	Rule      string         `json:"rule,omitempty"`    // the conductor's, when the leader answered
	Reason    string         `json:"reason,omitempty"`
}

// OperationView is work on a group that somebody asked for.
type OperationView struct {
	ID    string    `json:"id"`
	Kind  string    `json:"kind"`
	From  string    `json:"from,omitempty"`
	To    string    `json:"to,omitempty"`
	Phase string    `json:"phase,omitempty"`
	By    string    `json:"by"`
	At    time.Time `json:"at"`
	Due   time.Time `json:"due,omitzero"` // not before
	Trust bool      `json:"trust,omitempty"`

	AcceptLoss bool `json:"accept_loss,omitempty"`
}

func operationView(s *fsm.State, op *fsm.Operation) *OperationView {
	if op == nil {
		return nil
	}
	return &OperationView{
		ID: op.ID, Kind: op.Kind, From: nameOf(s, op.From), To: nameOf(s, op.To), Phase: op.Phase, By: op.By, At: op.At, Due: op.Due, Trust: op.Trust, AcceptLoss: op.AcceptLoss,
	}
}

// RaftView is the control plane by names.
type RaftView struct {
	Leader        string   `json:"leader"` // empty: none is known
	Term          uint64   `json:"term"`
	Voters        []string `json:"voters"`
	SlowestTickMS int64    `json:"slowest_tick_ms,omitempty"` // of the last minute
	LastContactMS int64    `json:"last_contact_ms,omitempty"` // how old the picture may be
}

// NewFormation makes the view of a status.
func NewFormation(st Status) Formation {
	s := st.State
	f := Formation{
		ClusterID: s.Cluster.ID, Incarnation: s.Cluster.Incarnation, AnsweredBy: st.Name, At: st.At, Index: s.Index, Members: Members(st), Metadata: st.Metadata,
		Raft: RaftView{
			Leader: nameOf(s, st.Raft.Leader), Term: st.Raft.Term, SlowestTickMS: st.Raft.SlowestTick.Milliseconds(), LastContactMS: st.Raft.LastContact.Milliseconds(),
		},
	}
	for id, suffrage := range st.Raft.Suffrage {
		if suffrage == "voter" {
			f.Raft.Voters = append(f.Raft.Voters, s.Name(id))
		}
	}
	slices.Sort(f.Raft.Voters)
	for _, id := range s.GroupIDs() {
		f.Groups = append(f.Groups, newGroup(st, s.Groups[id]))
	}
	f.Troubles = troubles(st, f)
	f.Healthy, f.Notes = len(f.Troubles) == 0, append(notes(f), upgradeNotes(s)...)
	return f
}

func newGroup(st Status, g fsm.Group) Group {
	s := st.State
	v := Group{
		ID: g.ID, Mode: g.Mode, Primary: nameOf(s, g.Lease.Holder), Open: g.Opened(), Epoch: g.Epoch.String(), Sync: pairText(s, g, g.Sync.Target()), Paused: g.Paused, Retired: g.Retired,
		Degraded: g.Mode != fsm.Off && g.Opened() && g.Sync.Target().K < min(g.Confirmers(), syncable(s, g)),
		Strict:   g.Strict, SyncCount: g.Confirmers(), SyncLag: g.SyncLag, Waiting: waiting(s, g),
	}
	if g.Sync.Joint() {
		for _, p := range g.Sync.Pairs {
			v.Joint = append(v.Joint, pairText(s, g, p))
		}
	}
	v.Operation, v.Planned = operationView(s, g.Op), operationView(s, g.Planned)
	if st.Raft.Leads && g.Held() {
		v.Early = orYes(decide.Early(decide.GroupView{State: s, Group: g, Heard: st.Heard}))
	}
	if p, ok := st.Plans[g.ID]; ok {
		v.Rule, v.Reason = p.Rule+" "+p.Name, p.Reason
	}
	return v
}

func orYes(why string) string {
	if why == "" {
		return "yes"
	}
	return "no: " + why
}

// syncable counts the members that could acknowledge commits of the holder.
func syncable(s *fsm.State, g fsm.Group) (n int) {
	for _, m := range s.Members(g.ID) {
		if m.ID != g.Lease.Holder && !m.Tags.NoSync {
			n++
		}
	}
	return n
}

func nameOf(s *fsm.State, id fsm.NodeID) string {
	if id == "" {
		return ""
	}
	return s.Name(id)
}

// waiting reports whether a strict group has fewer standbys that stream, by their last reports, than have to confirm a commit.
func waiting(s *fsm.State, g fsm.Group) bool {
	if !g.Holds() || !g.Held() {
		return false
	}
	target, n := g.Sync.Target(), 0
	for _, id := range target.S {
		if r := s.Nodes[id].Report; r.State == "streaming" && r.Epoch == g.Epoch {
			n++
		}
	}
	return n < target.K
}

func pairText(s *fsm.State, g fsm.Group, p fsm.Pair) string {
	if p.K == 0 {
		return "no standby"
	}
	names := make([]string, 0, len(p.S))
	if order := decide.SyncOrder(s, g, p.S); order != nil {
		for _, id := range order {
			names = append(names, s.Name(id))
		}
		return fmt.Sprintf("the first %d of (%s)", p.K, strings.Join(names, ", "))
	}
	for _, id := range p.S {
		names = append(names, s.Name(id))
	}
	slices.Sort(names)
	return fmt.Sprintf("any %d of (%s)", p.K, strings.Join(names, ", "))
}

// troubles lists what keeps the formation from being healthy, the gravest first.
func troubles(st Status, f Formation) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch {
	case f.Raft.Leader == "":
		add("no Raft leader: nothing can be changed, and primaries stop at the end of their lease")
	case !st.Raft.Leads:
		add("the Raft leader %s did not answer: this is what %s knows, and who is silent is unknown", f.Raft.Leader, st.Name)
	}
	for _, g := range f.Groups {
		groupTroubles(st, g, add)
	}
	for _, m := range f.Members {
		memberTroubles(st, m, add)
	}
	switch md := f.Metadata; {
	case !st.State.Cluster.Settings.Citus || !st.Raft.Leads:
	case md == nil:
		add("Citus metadata has not been looked at yet")
	case md.Error != "":
		add("Citus metadata: %s", md.Error)
	case !md.Synced:
		add("Citus metadata is not in sync: %s", strings.Join(md.Differences, "; "))
	}
	return out
}

func groupTroubles(st Status, g Group, add func(string, ...any)) {
	because := ""
	if g.Reason != "" {
		because = ": " + g.Reason
	}
	switch raw := st.State.Groups[g.ID]; {
	case raw.SystemID == "":
		add("group %d is not initialised%s", g.ID, because)
	case g.Primary == "":
		add("group %d has no primary%s", g.ID, because)
	case g.Waiting && !g.Open:
		add("group %d is strict and waiting for a standby: %s opens once %d have confirmed its first commit; bring one back, or 'matriarch config set --group %d strict=false'", g.ID, g.Primary, raw.Sync.Target().K, g.ID)
	case g.Waiting:
		add("group %d is strict and waiting for a standby: commits of %s need %s; bring one back, or 'matriarch config set --group %d strict=false'", g.ID, g.Primary, g.Sync, g.ID)
	case !g.Open:
		add("group %d: %s is about to become primary, clients must wait", g.ID, g.Primary)
	case raw.Sync.Unknown:
		add("group %d: the synchronous set is unknown since the control plane was rebuilt", g.ID)
	case g.Degraded && raw.Sync.Target().K > 0:
		add("group %d is degraded: commits of %s wait for %d standby instead of %d", g.ID, g.Primary, raw.Sync.Target().K, g.SyncCount)
	case g.Degraded:
		add("group %d is degraded: commits of %s do not wait for any standby", g.ID, g.Primary)
	case len(g.Joint) > 0:
		add("group %d: the synchronous set is changing: %s", g.ID, strings.Join(g.Joint, " and "))
	}
}

func memberTroubles(st Status, m Member, add func(string, ...any)) {
	n := st.State.Nodes[m.ID]
	switch {
	case m.Silent:
		add("%s is %s", m.Name, m.State)
	case n.Postgres == "" || m.Role == RolePrimary:
	case m.State != "streaming":
		add("%s does not stream: %s", m.Name, m.State)
	case m.Role == RoleStandby && !n.Tags.NoSync && st.State.Groups[m.Group].Mode != fsm.Off:
		add("%s streams but acknowledges no commits yet", m.Name)
	}
}

// notes lists what is as somebody wanted it, or needs a decision that can wait.
func notes(f Formation) []string {
	var out []string
	for _, g := range f.Groups {
		if g.Paused {
			out = append(out, fmt.Sprintf("group %d is paused: no automatic change of its primary", g.ID))
		}
		if why, no := strings.CutPrefix(g.Early, "no: "); no && !g.Paused && g.Mode != fsm.Off {
			out = append(out, fmt.Sprintf("group %d could fail over only at the end of a lease just now: %s", g.ID, why))
		}
		if g.Retired {
			out = append(out, fmt.Sprintf("group %d is retired: 'matriarch remove NODE' takes its nodes out, 'matriarch citus add-group %d' takes it back", g.ID, g.ID))
		}
	}
	if f.Metadata != nil {
		for _, db := range f.Metadata.Left {
			out = append(out, fmt.Sprintf("database %s is not listed in the settings any more: it is left as it is, and nobody keeps its rows of pg_dist_node right", db))
		}
	}
	for _, m := range f.Members {
		if m.Fence != "" {
			out = append(out, fmt.Sprintf("%s: fence: %s, until PostgreSQL has been restarted by Matriarch", m.Name, m.Fence))
		}
		if m.Unfit != "" {
			out = append(out, fmt.Sprintf("%s cannot become primary just now: %s", m.Name, m.Unfit))
		} else if strings.Contains(m.Watchdog, string(fence.WatchdogFailed)) {
			out = append(out, fmt.Sprintf("%s: watchdog: %s", m.Name, m.Watchdog))
		}
		if m.SetAside > 0 {
			out = append(out, fmt.Sprintf("%s keeps %d data set(s) aside that its group does not have: `matriarch status %s` shows where; look at them, then delete them", m.Name, m.SetAside, m.Name))
		}
	}
	return out
}
