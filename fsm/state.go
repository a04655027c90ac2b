package fsm

import (
	"cmp"
	"maps"
	"slices"
	"sort"
	"time"
)

// State is the replicated truth after the entry Index. It is immutable.
type State struct {
	Index    uint64                `json:"index"`
	Cluster  Cluster               `json:"cluster"`
	Nodes    map[NodeID]Node       `json:"nodes"`
	Removed  map[NodeID]string     `json:"removed"` // nodes taken out for good, with the name they had
	Groups   map[GroupID]Group     `json:"groups"`
	Tokens   map[string]Token      `json:"tokens"`
	History  map[GroupID][]History `json:"history"`
	Requests []Request             `json:"requests"` // the last maxRequests answered request ids, oldest first
}

// Cluster describes the formation as a whole.
type Cluster struct {
	ID          string   `json:"id"`
	Incarnation uint64   `json:"incarnation"` // raised by recover; part of every epoch and of the TLS handshake
	Gate        int      `json:"gate"`        // command version that every node is known to understand
	Settings    Settings `json:"settings"`
}

// Settings hold for the whole cluster and may be changed live.
type Settings struct {
	TTL              time.Duration `json:"ttl"`                // length of a lease; fixed per epoch at its Grant
	DeadVoterAfter   time.Duration `json:"dead_voter_after"`   // an unreachable voter is replaced after this
	DegradeAfter     time.Duration `json:"degrade_after"`      // a synchronous standby missing this long leaves the set
	MaximumLag       int64         `json:"maximum_lag"`        // bytes a candidate of an asynchronous group may miss
	RestartWait      time.Duration `json:"restart_wait"`       // how long a crashed primary of an asynchronous group may take to come back before another is elected
	LeaderAvoid      bool          `json:"leader_avoid"`       // keep Raft leadership off hosts that hold leases
	Citus            bool          `json:"citus"`              // create the extension and keep pg_dist_node
	Databases        []string      `json:"databases"`          // databases created in every group
	DefaultMode      Mode          `json:"default_mode"`       // replication mode of new groups
	MaximumClockSkew time.Duration `json:"maximum_clock_skew"` // a joining node's wall clock may differ by this much

	FailoverZone  string `json:"failover_zone_preference,omitempty"` // same or other: which zone a new primary comes from where all else is equal
	CheckTimeline bool   `json:"check_timeline,omitempty" since:"2"` // only who has reached the newest timeline may become primary

	MemberSlotsTTL time.Duration `json:"member_slots_ttl,omitempty" since:"2"` // see SlotsTTL
	RewindFailure  string        `json:"rewind_failure,omitempty" since:"2"`   // stop: a failed rewind waits for an operator; else a clone follows

	CitusSecondaries  bool          `json:"citus_secondaries,omitempty"`   // register standbys in pg_dist_node as secondaries
	CitusSecondaryLag int64         `json:"citus_secondary_lag,omitempty"` // bytes a registered standby may have left to replay
	CitusPause        string        `json:"citus_pause,omitempty"`         // full, group or off: what waits during a switchover
	PauseLockTimeout  time.Duration `json:"pause_lock_timeout,omitempty"`  // how long a switchover tries to get clients to wait
	CitusPoolPort     int           `json:"citus_pool_port,omitempty"`     // the port of a connection pool beside every PostgreSQL, for Citus' own links; 0: none

	SickAfter    time.Duration `json:"sick_after,omitempty" since:"2"`    // PostgreSQL counts as sick, or well again, when it has looked so for this long; 0: DefaultSickAfter
	SickCooldown time.Duration `json:"sick_cooldown,omitempty" since:"2"` // a group is handed over for sickness once in this time, never to a node that was sick in it; 0: DefaultSickCooldown

	PostgresTLS LinkSecurity `json:"postgresql_tls,omitempty" since:"2"` // how the nodes' PostgreSQL prove themselves to each other
}

// What holds where nobody has set another.
const (
	DefaultSickAfter    = 5 * time.Second
	DefaultSickCooldown = 10 * time.Minute
)

// Patience is SickAfter, or its default.
func (s Settings) Patience() time.Duration { return cmp.Or(s.SickAfter, DefaultSickAfter) }

// Cooldown is SickCooldown, or its default.
func (s Settings) Cooldown() time.Duration { return cmp.Or(s.SickCooldown, DefaultSickCooldown) }

// LinkSecurity is how the nodes' PostgreSQL prove themselves to each other. The empty string is LinksOff.
type LinkSecurity string

// The steps from passwords to certificates. Only neighbours understand each other while some nodes are a step ahead.
const (
	LinksOff  LinkSecurity = "off"  // passwords
	LinksBoth LinkSecurity = "both" // links use certificates, servers accept passwords as well
	LinksOn   LinkSecurity = "on"   // certificates only
)

// Or is the step itself, LinksOff for none.
func (l LinkSecurity) Or() LinkSecurity { return cmp.Or(l, LinksOff) }

// Known reports whether l is one of the steps.
func (l LinkSecurity) Known() bool { return l == "" || l == LinksOff || l == LinksBoth || l == LinksOn }

// DefaultSettings are those of a new cluster.
func DefaultSettings() Settings {
	return Settings{
		TTL: 5 * time.Second, DeadVoterAfter: time.Minute, DegradeAfter: 2 * time.Second, MaximumLag: 1 << 20,
		RestartWait: 30 * time.Second, LeaderAvoid: true, Citus: true, Databases: []string{"app"}, DefaultMode: Quorum,
		MaximumClockSkew: 30 * time.Second,
		CitusSecondaries: true, CitusSecondaryLag: 16 << 20, CitusPause: "full", PauseLockTimeout: 5 * time.Second, PostgresTLS: LinksOn,
	}
}

// Node is one host.
type Node struct {
	ID       NodeID  `json:"id"`
	Name     string  `json:"name"`
	Group    GroupID `json:"group"`
	Peer     string  `json:"peer"`     // host:port of Raft, RPC and join
	Postgres string  `json:"postgres"` // host:port of PostgreSQL
	API      string  `json:"api"`      // host:port of the HTTP API
	Zone     string  `json:"zone,omitempty"`
	Tags     Tags    `json:"tags"`
	Version  string  `json:"version"`
	Protocol int     `json:"protocol"` // highest command version the node's binary understands
	Joined   uint64  `json:"joined"`   // index of the entry that added it
	Report   Report  `json:"report"`
}

// Tags steer what a node may become.
type Tags struct {
	NoFailover       bool              `json:"nofailover,omitempty"`
	NoSync           bool              `json:"nosync,omitempty"`
	NoLoadBalance    bool              `json:"noloadbalance,omitempty"`
	CloneFrom        bool              `json:"clonefrom,omitempty"`
	NeverVoter       bool              `json:"never_voter,omitempty"`
	FailoverPriority int               `json:"failover_priority,omitempty"`
	SyncPriority     int               `json:"sync_priority,omitempty"` // in mode on: the greatest confirm commits
	User             map[string]string `json:"user,omitempty"`
}

// Report is what a node last said of its PostgreSQL. It informs people and hints; no election rests on it.
type Report struct {
	At        time.Time `json:"at,omitzero"` // by the leader's clock, for people
	State     string    `json:"state"`       // running, streaming, starting, stopped, creating replica, ...
	Role      string    `json:"role"`        // primary, standby or empty
	Timeline  Timeline  `json:"timeline"`
	Receive   LSN       `json:"receive"`
	Replay    LSN       `json:"replay"`
	Epoch     Epoch     `json:"epoch"` // the epoch it holds or follows
	PGVersion int       `json:"pg_version,omitempty"`
	Rule      string    `json:"rule"`
	Fence     string    `json:"fence,omitempty"` // "weak" while a server runs that the sentinel did not start
	Pending   bool      `json:"pending_restart,omitempty"`
	SetAside  int       `json:"set_aside,omitempty"`           // data directories kept aside
	Open      bool      `json:"open,omitempty"`                // pg_hba.conf in force lets clients in
	Unfit     string    `json:"unfit,omitempty"`               // why it must not become primary just now
	Watchdog  string    `json:"watchdog,omitempty"`            // mode and state, unless it is off
	Copied    int64     `json:"copied,omitempty"`              // bytes of the clone under way
	ToCopy    int64     `json:"to_copy,omitempty"`             // its size in bytes
	Sick      string    `json:"sick,omitempty" since:"2"`      // the short name of what ails PostgreSQL or its disks; empty: well
	SickText  string    `json:"sick_text,omitempty" since:"2"` // the same in words, with the remedy; without numbers that change
	SickAt    time.Time `json:"sick_at,omitzero" since:"2"`    // when it was last sick, by the leader's clock; Apply keeps it
	Slots     string    `json:"slots,omitempty" since:"2"`     // what is wrong with its replication slots, in words
}

// SameButLSN reports whether only positions, the progress of a clone and times differ.
func (r Report) SameButLSN(o Report) bool {
	r.At, r.Receive, r.Replay, r.Copied, r.ToCopy, r.SickAt = o.At, o.Receive, o.Replay, o.Copied, o.ToCopy, o.SickAt
	return r == o
}

// Mode says how a group replicates.
type Mode string

// The modes of this version.
const (
	Quorum Mode = "quorum" // synchronous_standby_names = 'ANY k (S)'
	On     Mode = "on"     // 'FIRST k (S)': the connected ones that stand first by priority
	Off    Mode = "off"    // asynchronous
)

// Known reports whether m is one of the modes.
func (m Mode) Known() bool { return m == Quorum || m == On || m == Off }

// Group is one replication set.
type Group struct {
	ID         GroupID    `json:"id"`
	Mode       Mode       `json:"mode"`
	Paused     bool       `json:"paused,omitempty"`                  // no automatic change of primary
	NoEarly    bool       `json:"no_early,omitempty"`                // a failover always waits for the end of the lease
	NoSick     bool       `json:"no_sick,omitempty" since:"2"`       // a sick primary stays: no failover for sickness
	SickMoved  time.Time  `json:"sick_moved,omitzero" since:"2"`     // when it was last taken from a primary that was sick, by the leader's clock
	Strict     bool       `json:"strict,omitempty"`                  // commits wait rather than being confirmed by fewer than Confirmers
	SyncCount  int        `json:"synchronous_node_count,omitempty"`  // 0: 1
	SyncLag    int64      `json:"maximum_lag_on_syncnode,omitempty"` // a synchronous standby that lacks more bytes leaves the set; 0: any may
	Retired    bool       `json:"retired,omitempty"`                 // not wanted in the Citus metadata any more: its nodes may go, down to the last
	Failsafe   bool       `json:"failsafe,omitempty" since:"2"`      // without a majority the primary stays up as long as every member gives its word
	Eligible   []NodeID   `json:"eligible,omitempty" since:"2"`      // who may be granted the lease, since a primary relied on their words; nil: every member
	ClaimedBy  NodeID     `json:"claimed_by"`                        // the node that may create the group's first data directory
	SystemID   string     `json:"system_id"`                         // PostgreSQL's system identifier; empty until initialised
	Lease      Lease      `json:"lease"`
	Epoch      Epoch      `json:"epoch"`       // of the last Grant
	LastHolder NodeID     `json:"last_holder"` // of the last Grant, or the initialiser
	Sync       Sync       `json:"sync"`
	Grants     []Grant    `json:"grants"`          // oldest first
	Ended      *End       `json:"ended,omitempty"` // of the last holder that stopped in good order, until another has confirmed
	Op         *Operation `json:"op,omitempty"`
	Planned    *Operation `json:"planned,omitempty"` // waits for its time
	LastOp     *Operation `json:"last_op,omitempty"` // how the one before ended
	Slots      []Slot     `json:"slots,omitempty"`   // permanent ones, beside the members' own
}

// Confirmers is how many standbys shall confirm a commit, where that many are there.
func (g Group) Confirmers() int { return max(g.SyncCount, 1) }

// Holds reports whether commits wait for standbys that are not there, instead of going on without them.
func (g Group) Holds() bool { return g.Strict && g.Mode != Off }

// MayHold reports whether a member may be granted the lease, as far as failsafe is concerned.
func (g Group) MayHold(n NodeID) bool { return g.Eligible == nil || slices.Contains(g.Eligible, n) }

// Held reports whether somebody has the lease.
func (g Group) Held() bool { return g.Lease.Holder != "" }

// Opened reports whether the holder has made its first synchronous commit of the current epoch: clients may enter.
func (g Group) Opened() bool { return g.Held() && g.Sync.Confirmed == g.Epoch }

// Lease is the right of one node to run the writable primary of the group.
type Lease struct {
	Holder   NodeID        `json:"holder"`   // empty: free
	Instance string        `json:"instance"` // the holder's sentinel, as SameBoot reads it
	Epoch    Epoch         `json:"epoch"`
	TTL      time.Duration `json:"ttl"`
	Revoked  bool          `json:"revoked,omitempty"`
	Early    bool          `json:"early,omitempty"` // revoked, and the next Grant need not wait for its end: the standbys recruited confirm nothing for it any more
}

// Pair is a synchronous set: a commit is acknowledged when K of S have flushed it. With K greater than S none is.
type Pair struct {
	K int      `json:"k"`
	S []NodeID `json:"s"`
}

// NewPair sorts and copies the set.
func NewPair(k int, s ...NodeID) Pair {
	s = slices.Clone(s)
	slices.Sort(s)
	return Pair{K: k, S: slices.Compact(s)}
}

// Equal compares two pairs.
func (p Pair) Equal(o Pair) bool { return p.K == o.K && slices.Equal(p.S, o.S) }

// Has reports membership.
func (p Pair) Has(n NodeID) bool { return slices.Contains(p.S, n) }

// Sync is the truth about who must have a commit. More than one pair means a joint phase: an election must satisfy all.
type Sync struct {
	Pairs     []Pair `json:"pairs"`             // the last is the one PostgreSQL is, or is being, set to
	Confirmed Epoch  `json:"confirmed"`         // newest epoch whose holder has confirmed its pair
	Unknown   bool   `json:"unknown,omitempty"` // after recover: the pairs prove nothing
}

// Target is the pair PostgreSQL is, or is being, set to.
func (s Sync) Target() Pair {
	if len(s.Pairs) == 0 {
		return Pair{}
	}
	return s.Pairs[len(s.Pairs)-1]
}

// Joint reports whether a change is under way.
func (s Sync) Joint() bool { return len(s.Pairs) > 1 }

// Token lets hosts join. Only the hash of its secret is known here.
type Token struct {
	ID      string    `json:"id"`
	Hash    string    `json:"hash"`
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"` // how many are left
	Made    time.Time `json:"made"`
}

// History is one line of a group's past.
type History struct {
	Index    uint64    `json:"index"`
	At       time.Time `json:"at"`
	Kind     string    `json:"kind"`
	Node     NodeID    `json:"node,omitempty"`
	Epoch    Epoch     `json:"epoch"`
	Timeline Timeline  `json:"timeline,omitempty"`
	LSN      LSN       `json:"lsn,omitempty"`
	Text     string    `json:"text"`
}

// Request remembers how a proposal ended, since its proposer may not have heard.
type Request struct {
	ID     string `json:"id"`
	Result Result `json:"result"`
}

const (
	maxRequests = 1000
	maxHistory  = 100
	maxGrants   = 500
)

// NewState is the state before the first entry.
func NewState() *State {
	return &State{
		Nodes: map[NodeID]Node{}, Removed: map[NodeID]string{}, Groups: map[GroupID]Group{}, Tokens: map[string]Token{},
		History: map[GroupID][]History{},
	}
}

// clone copies what Apply may change. Values are replaced whole, so the maps' contents can be shared.
func (s *State) clone() *State {
	c := *s
	c.Nodes, c.Removed, c.Groups = maps.Clone(s.Nodes), maps.Clone(s.Removed), maps.Clone(s.Groups)
	c.Tokens, c.History = maps.Clone(s.Tokens), maps.Clone(s.History)
	return &c
}

// Members lists the nodes of a group, oldest first.
func (s *State) Members(g GroupID) []Node {
	var out []Node
	for _, n := range s.Nodes {
		if n.Group == g {
			out = append(out, n)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Joined < out[j].Joined })
	return out
}

// GroupIDs lists the groups in order.
func (s *State) GroupIDs() []GroupID { return slices.Sorted(maps.Keys(s.Groups)) }

// NodeIDs lists the nodes in order.
func (s *State) NodeIDs() []NodeID { return slices.Sorted(maps.Keys(s.Nodes)) }

// NodeByName finds a node by name or UUID.
func (s *State) NodeByName(name string) (Node, bool) {
	if n, ok := s.Nodes[NodeID(name)]; ok {
		return n, true
	}
	for _, id := range s.NodeIDs() {
		if s.Nodes[id].Name == name {
			return s.Nodes[id], true
		}
	}
	return Node{}, false
}

// Name returns a node's name, or its UUID when it is unknown.
func (s *State) Name(id NodeID) string {
	if n, ok := s.Nodes[id]; ok {
		return n.Name
	}
	if name, ok := s.Removed[id]; ok {
		return name
	}
	return string(id)
}

// Promoted returns the node whose promotion under the present lease is recorded: members may follow it, clients may not enter
// before Primary says so.
func (s *State) Promoted(g GroupID) (Node, bool) {
	gr := s.Groups[g]
	last, ok := gr.LastGrant()
	n, member := s.Nodes[gr.Lease.Holder]
	return n, ok && member && last.Epoch == gr.Lease.Epoch && last.Timeline != 0
}

// Primary returns the node that clients of the group may use, if there is one.
func (s *State) Primary(g GroupID) (Node, bool) {
	gr := s.Groups[g]
	n, ok := s.Nodes[gr.Lease.Holder]
	return n, ok && gr.Opened()
}
