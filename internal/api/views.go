package api

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"time"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/obs"
)

// patroniVersion is the Patroni whose interface is followed; as a number in the metrics.
const (
	patroniVersion       = "4.1.4"
	patroniVersionNumber = 40104
)

// node is the body of /patroni and of every health check.
type node struct {
	State             string         `json:"state"`
	PostmasterStarted string         `json:"postmaster_start_time,omitempty"`
	Role              string         `json:"role"` // primary or replica
	ServerVersion     int            `json:"server_version,omitempty"`
	Xlog              *xlog          `json:"xlog,omitempty"`
	Timeline          fsm.Timeline   `json:"timeline,omitempty"`
	ReplicationState  string         `json:"replication_state,omitempty"`
	SyncStandby       bool           `json:"sync_standby,omitempty"`
	QuorumStandby     bool           `json:"quorum_standby,omitempty"`
	Replication       []sender       `json:"replication,omitempty"`
	Pause             bool           `json:"pause,omitempty"`
	ClusterUnlocked   bool           `json:"cluster_unlocked,omitempty"`
	LastSeen          int64          `json:"dcs_last_seen"`
	Tags              map[string]any `json:"tags,omitempty"`
	PendingRestart    bool           `json:"pending_restart,omitempty"`
	Failsafe          bool           `json:"failsafe_mode_is_active,omitempty"`
	SystemID          string         `json:"database_system_identifier,omitempty"`
	Patroni           patroniInfo    `json:"patroni"`

	Group          fsm.GroupID `json:"group"`
	Epoch          string      `json:"epoch,omitempty"` // of the group's lease
	LeaseRemaining int64       `json:"lease_remaining_ms"`
	Fence          string      `json:"fence,omitempty"`
	Sick           string      `json:"sick,omitempty"`      // the reason, as in the metric
	SickText       string      `json:"sick_text,omitempty"` // the same in words
	Rule           string      `json:"rule,omitempty"`
	Reason         string      `json:"reason,omitempty"`
	Raft           raft        `json:"raft"`
}

type xlog struct {
	Location *fsm.LSN `json:"location,omitempty"`
	Received *fsm.LSN `json:"received_location,omitempty"`
	Replayed *fsm.LSN `json:"replayed_location,omitempty"`
	Paused   *bool    `json:"paused,omitempty"`
}

type sender struct {
	ApplicationName string `json:"application_name"`
	State           string `json:"state"`
	SyncState       string `json:"sync_state"`
	Lag             int64  `json:"lag"`
}

type patroniInfo struct {
	Version string `json:"version"`
	Scope   string `json:"scope"`
	Name    string `json:"name"`
}

type raft struct {
	Leader  string `json:"leader"`
	Term    uint64 `json:"term"`
	State   string `json:"state"`
	Applied uint64 `json:"applied"`
}

func nodeStatus(st admin.Status) node {
	out := node{
		State: obs.StateStarting.String(), Role: "replica", LastSeen: lastSeen(st).Unix(), Patroni: patroniInfo{Version: patroniVersion, Name: st.Name},
		Raft: raft{Term: st.Raft.Term, State: st.Raft.State, Applied: st.Raft.Applied, Leader: string(st.Raft.Leader)},
	}
	n, member := st.Me()
	if st.State != nil {
		out.Patroni.Scope = st.State.Cluster.ID
		out.Raft.Leader = st.State.Name(st.Raft.Leader)
	}
	if member {
		g := st.State.Groups[n.Group]
		out.Group, out.Tags, out.SystemID, out.Pause, out.ClusterUnlocked = n.Group, admin.TagMap(n.Tags), g.SystemID, g.Paused, !g.Held()
		if g.Held() {
			out.Epoch = g.Epoch.String()
		}
	}
	if st.Self != nil {
		fillSelf(&out, st)
	}
	return out
}

func fillSelf(out *node, st admin.Status) {
	self := st.Self
	r := self.Report
	out.State, out.LeaseRemaining, out.Fence = stateOf(st).String(), self.LeaseLeft.Milliseconds(), r.Fence
	out.Failsafe = failsafeActive(st)
	out.Sick, out.SickText = r.Sick, r.SickText
	out.Rule, out.Reason, out.PendingRestart = self.Rule+" "+self.Name, self.Reason, r.Pending
	if t := self.Processes.PostmasterStarted; !t.IsZero() && self.Postmaster != 0 {
		out.PostmasterStarted = t.UTC().Format("2006-01-02 15:04:05.000000-07:00")
	}
	if !self.Postgres.Reachable {
		return
	}
	out.ServerVersion, out.Timeline = r.PGVersion, r.Timeline
	if !self.Postgres.InRecovery {
		out.Role, out.Xlog, out.Replication = "primary", &xlog{Location: &r.Replay}, senders(st)
		return
	}
	paused := false
	out.Xlog = &xlog{Received: &r.Receive, Replayed: &r.Replay, Paused: &paused}
	if self.Postgres.Streaming {
		out.ReplicationState = "streaming"
	}
	out.QuorumStandby, _ = inQuorum(st, nil)
	out.SyncStandby, _ = hasEveryCommit(st, nil)
}

func failsafeActive(st admin.Status) bool {
	return st.Self != nil && st.Self.Failsafe != nil && st.Self.Failsafe.Active
}

// failsafe is the body of /failsafe: what the node itself knows, since the replicated state stands still when it matters.
type failsafe struct {
	On             bool              `json:"failsafe"`
	Active         bool              `json:"failsafe_active"` // the primary here is up on the members' words
	Since          *time.Time        `json:"since,omitempty"`
	LeaseRemaining int64             `json:"lease_remaining_ms"`
	Reason         string            `json:"reason,omitempty"`
	Without        map[string]string `json:"without,omitempty"`           // who did not give its word when last asked, and why
	WordRemaining  int64             `json:"word_remaining_ms,omitempty"` // how long this node's own word to another primary binds it
}

func failsafeView(st admin.Status) failsafe {
	var out failsafe
	if st.Self == nil {
		return out
	}
	out.LeaseRemaining = st.Self.LeaseLeft.Milliseconds()
	f := st.Self.Failsafe
	if f == nil {
		return out
	}
	out.On, out.Active, out.WordRemaining, out.Reason = f.On, f.Active, f.WordLeft.Milliseconds(), f.Rule+" "+f.Name
	if f.Active {
		out.Since = &f.Since
	}
	for id, why := range f.Without {
		if out.Without == nil {
			out.Without = map[string]string{}
		}
		out.Without[st.State.Name(id)] = why
	}
	return out
}

func senders(st admin.Status) []sender {
	var out []sender
	for _, x := range st.Self.Postgres.Senders {
		s := sender{ApplicationName: string(x.Node), State: "missing", SyncState: "async", Lag: x.Lag}
		if st.State != nil {
			s.ApplicationName = st.State.Name(x.Node)
			if n, ok := st.Me(); ok && st.State.Groups[n.Group].Sync.Target().Has(x.Node) {
				s.SyncState = "quorum"
			}
		}
		if x.Streaming {
			s.State = "streaming"
		}
		out = append(out, s)
	}
	return out
}

// lastSeen is when the control plane last answered.
func lastSeen(st admin.Status) time.Time { return st.At.Add(-st.Raft.LastContact) }

// stateOf is what PostgreSQL does, in Patroni's words.
func stateOf(st admin.Status) obs.PostgresState {
	switch {
	case st.Self == nil:
		return obs.StateStarting
	case st.Self.Postgres.Reachable:
		return obs.StateRunning
	case st.Self.Postmaster != 0:
		return obs.StateStarting
	}
	switch st.Self.Job {
	case "clone", "creating replica":
		return obs.StateCreatingReplica
	case "initdb":
		return obs.StateInitDB
	}
	return obs.StateStopped
}

func patroniMetrics(st admin.Status) obs.Patroni {
	p := obs.Patroni{Version: patroniVersionNumber, ConsensusSeen: lastSeen(st), State: stateOf(st)}
	if n, ok := st.Me(); ok {
		g := st.State.Groups[n.Group]
		p.ClusterUnlocked, p.Paused = !g.Held(), g.Paused
	}
	p.Primary, _ = st.Writable()
	if st.Self == nil {
		return p
	}
	p.FailsafeActive = failsafeActive(st)
	r := st.Self.Report
	p.PostmasterStart, p.PendingRestart = st.Self.Processes.PostmasterStarted, r.Pending
	p.PostgresRunning = running(st)
	if !p.PostgresRunning {
		return p
	}
	p.ServerVersion, p.Timeline = r.PGVersion, r.Timeline
	if !st.Self.Postgres.InRecovery {
		p.Location = r.Replay
		return p
	}
	p.Replica, p.Streaming, p.ReceivedLocation, p.ReplayedLocation = true, st.Self.Postgres.Streaming, r.Receive, r.Replay
	p.InArchiveRecovery = !p.Streaming
	p.QuorumStandby, _ = inQuorum(st, nil)
	p.SyncStandby, _ = hasEveryCommit(st, nil)
	return p
}

// member is one row of /cluster.
type member struct {
	Name           string         `json:"name"`
	Role           string         `json:"role"` // leader, sync_standby, quorum_standby, replica
	State          string         `json:"state"`
	APIURL         string         `json:"api_url"`
	Host           string         `json:"host"`
	Port           int            `json:"port"`
	Timeline       fsm.Timeline   `json:"timeline,omitempty"`
	PendingRestart bool           `json:"pending_restart,omitempty"`
	Tags           map[string]any `json:"tags,omitempty"`
	ReceiveLSN     string         `json:"receive_lsn,omitempty"`
	ReceiveLag     any            `json:"receive_lag,omitempty"` // bytes, or "unknown"; absent on the leader
	ReplayLSN      string         `json:"replay_lsn,omitempty"`
	ReplayLag      any            `json:"replay_lag,omitempty"`
	LSN            string         `json:"lsn,omitempty"`
	Lag            any            `json:"lag,omitempty"`
	Group          fsm.GroupID    `json:"group"`
	Epoch          string         `json:"epoch,omitempty"`
	Fence          string         `json:"fence,omitempty"`
}

type cluster struct {
	Members     []member `json:"members"`
	Scope       string   `json:"scope"`
	Pause       bool     `json:"pause,omitempty"` // every group is paused
	Incarnation uint64   `json:"incarnation"`
	Raft        raft     `json:"raft"`
	Troubles    []string `json:"troubles,omitempty"`
}

func clusterView(st admin.Status) any {
	f := admin.NewFormation(st)
	out := cluster{Scope: f.ClusterID, Incarnation: f.Incarnation, Raft: nodeStatus(st).Raft, Troubles: f.Troubles, Members: []member{}}
	for _, m := range f.Members {
		out.Members = append(out.Members, memberView(st, m))
	}
	slices.SortFunc(out.Members, func(a, b member) int { return cmp.Compare(a.Name, b.Name) })
	out.Pause = len(f.Groups) > 0 && !slices.ContainsFunc(f.Groups, func(g admin.Group) bool { return !g.Paused })
	return out
}

func memberView(st admin.Status, m admin.Member) member {
	host, port, _ := net.SplitHostPort(m.Host)
	v := member{
		Name: m.Name, Role: "replica", State: m.State, APIURL: "http://" + m.API + "/patroni", Host: host, Timeline: m.Timeline, PendingRestart: m.Pending, Tags: m.Tags,
		Group: m.Group, Fence: m.Fence,
	}
	v.Port, _ = strconv.Atoi(port)
	if m.Role == admin.RolePrimary {
		v.Role, v.LSN, v.Epoch = "leader", m.ReplayLSN, st.State.Groups[m.Group].Epoch.String()
		return v
	}
	if sync := st.State.Groups[m.Group].Sync.Target(); m.Role == admin.RoleQuorumStandby {
		v.Role = "quorum_standby"
		if sync.K == len(sync.S) {
			v.Role = "sync_standby"
		}
	}
	v.ReceiveLSN, v.ReplayLSN, v.LSN = m.ReceiveLSN, m.ReplayLSN, cmp.Or(m.ReceiveLSN, m.ReplayLSN)
	v.ReceiveLag, v.ReplayLag = orUnknown(m.ReceiveLag), orUnknown(m.ReplayLag)
	v.Lag = v.ReceiveLag
	if m.ReceiveLag == nil {
		v.Lag = v.ReplayLag
	}
	return v
}

func orUnknown(n *int64) any {
	if n == nil {
		return "unknown"
	}
	return *n
}

// historyView lists the switches of timelines of the node's group as Patroni does: timeline left, position, reason, time, new primary.
func historyView(st admin.Status) any {
	out := [][]any{}
	n, ok := st.Me()
	if !ok {
		return out
	}
	for _, gr := range st.State.Groups[n.Group].Grants {
		if gr.Parent == 0 || gr.Parent == gr.Timeline {
			continue
		}
		at := ""
		for _, h := range st.State.History[n.Group] {
			if h.Kind == "promoted" && h.Epoch == gr.Epoch {
				at = h.At.UTC().Format(time.RFC3339Nano)
			}
		}
		out = append(out, []any{gr.Parent, gr.Fork, "no recovery target specified", at, st.State.Name(gr.Holder)})
	}
	return out
}

// configView shows the cluster's settings: Patroni's names where there is one, and all of them as text.
func configView(st admin.Status) any {
	s := st.State.Cluster.Settings
	all := map[string]string{}
	for _, x := range admin.ClusterSettings() {
		all[x.Key] = x.Get(s)
	}
	mode := any(string(s.DefaultMode))
	if s.DefaultMode == fsm.Off {
		mode = false
	}
	return map[string]any{
		"ttl": s.TTL.Seconds(), "maximum_lag_on_failover": s.MaximumLag, "primary_start_timeout": s.RestartWait.Seconds(), "synchronous_mode": mode, "matriarch": all,
	}
}
