package fsm

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Result is the answer to one entry. Reason is a sentence for the operator when OK is false.
type Result struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
	Epoch  Epoch  `json:"epoch"` // the new epoch, of a Grant
	Index  uint64 `json:"-"`     // of a state that has it; set for who proposed, not kept
	Fatal  bool   `json:"-"`     // this binary does not know the command: the node must stop
}

func refuse(format string, args ...any) Result { return Result{Reason: fmt.Sprintf(format, args...)} }

var done = Result{OK: true}

// entry is what a handler sees: a private copy of the state, and where and when the command stands.
type entry struct {
	*State
	index uint64
	at    time.Time
}

// Apply is the state machine: it returns the state after the entry and the entry's answer. It never panics on content.
// A refused command changes nothing but the index and the memory of its request id.
func Apply(s *State, index uint64, data []byte) (*State, Result) {
	var env Envelope
	if err := json.Unmarshal(data, &env); err != nil {
		return s.at(index), refuse("entry %d is not a command: %v", index, err)
	}
	if env.ID != "" {
		for _, r := range slices.Backward(s.Requests) {
			if r.ID == env.ID {
				return s.at(index), r.Result
			}
		}
	}
	dec, known := decoders[env.Type]
	switch {
	case known && env.V <= Protocol:
	case env.Ignore:
		return s.at(index), done
	default: // a newer version of a known command may mean something else
		return s, Result{Fatal: true, Reason: fmt.Sprintf("entry %d is a %q command (version %d), which this version of matriarch does not know: install a newer one", index, env.Type, env.V)}
	}
	cmd, err := dec(env.Body)
	if err != nil {
		return s.at(index), refuse("entry %d: decode %s: %v", index, env.Type, err)
	}
	next := entry{s.clone(), index, env.At}
	res := next.apply(cmd)
	if !res.OK { // handlers may have touched the copy before they refused
		next.State = s.clone()
	}
	next.Index = index
	if env.ID != "" {
		next.remember(env.ID, res)
	}
	return next.State, res
}

func (s *State) at(index uint64) *State {
	c := *s
	c.Index = index
	return &c
}

func (s *State) remember(id string, res Result) {
	keep := s.Requests
	if len(keep) >= maxRequests {
		keep = keep[len(keep)-maxRequests+1:]
	}
	s.Requests = append(slices.Clone(keep), Request{ID: id, Result: res})
}

func (e entry) apply(cmd Command) Result {
	switch c := cmd.(type) {
	case Bootstrap:
		return e.bootstrap(c)
	case Join:
		return e.join(c)
	case NodePut:
		return e.nodePut(c)
	case NodeRemove:
		return e.nodeRemove(c)
	case TokenPut:
		e.Tokens[c.Token.ID] = c.Token
		return done
	case TokenDrop:
		return e.tokenDrop(c)
	case SettingsPut:
		return e.settingsPut(c)
	case GateSet:
		return e.gateSet(c)
	case Recovered:
		return e.recovered(c)
	case Tick:
		return e.tick(c)
	}
	return e.applyGroup(cmd)
}

func (e entry) applyGroup(cmd Command) Result {
	switch c := cmd.(type) {
	case Claim:
		return e.claim(c)
	case Initialised:
		return e.initialised(c)
	case GrantCmd:
		return e.grant(c)
	case Release:
		return e.release(c)
	case Expire:
		return e.end(c.Group, c.Epoch, "expired", "the holder was not heard of for the length of its lease", nil)
	case Revoke:
		return e.revoke(c)
	case Promoted:
		return e.promoted(c)
	case SyncPropose:
		return e.syncPropose(c)
	case SyncConfirm:
		return e.syncConfirm(c)
	case GroupSet:
		return e.groupSet(c)
	case OperationPut:
		return e.operationPut(c)
	case OperationDrop:
		return e.operationDrop(c)
	case OperationMove:
		return e.operationMove(c)
	}
	return refuse("command %q has no handler", cmd.Kind())
}

// note appends to a group's history.
func (e entry) note(g GroupID, h History) {
	h.Index, h.At = e.index, e.at
	past := e.History[g]
	if len(past) >= maxHistory {
		past = past[len(past)-maxHistory+1:]
	}
	e.History[g] = append(slices.Clone(past), h)
}

func (e entry) bootstrap(c Bootstrap) Result {
	if e.Cluster.ID != "" {
		return refuse("cluster %s is bootstrapped already", e.Cluster.ID)
	}
	e.Cluster = Cluster{ID: c.ClusterID, Incarnation: c.Incarnation, Gate: c.since(), Settings: c.Settings}
	if c.Token != nil {
		e.Tokens[c.Token.ID] = *c.Token
	}
	return e.putNode(c.Node)
}

func (e entry) join(c Join) Result {
	t, ok := e.Tokens[c.Token]
	_, known := e.Nodes[c.Node.ID]
	switch {
	case !ok:
		return refuse("join token %s is not known here: it was revoked, or belongs to another cluster; make one with `matriarch token create`", c.Token)
	case !known && t.Uses <= 0:
		return refuse("join token %s is used up: make another with `matriarch token create`", c.Token)
	}
	if res := e.putNode(c.Node); !res.OK {
		return res
	}
	if !known { // a repeated join costs nothing
		t.Uses--
		e.Tokens[c.Token] = t
	}
	return done
}

func (e entry) nodePut(c NodePut) Result {
	old, ok := e.Nodes[c.Node.ID]
	if !ok {
		return refuse("node %s is not a member of this cluster: join it first", c.Node.ID)
	}
	if old.Group != c.Node.Group {
		return refuse("node %s belongs to group %d and cannot move to group %d: remove it and join again", old.Name, old.Group, c.Node.Group)
	}
	return e.putNode(c.Node)
}

// putNode is the one place where a node enters the state: names and addresses are unique, groups come into being.
func (e entry) putNode(n Node) Result {
	if _, gone := e.Removed[n.ID]; gone {
		return refuse("node %s was removed from this cluster for good: join with a new identity (empty its state folder)", n.Name)
	}
	if max(n.Protocol, 1) < e.Cluster.Gate {
		return refuse("node %s runs matriarch %s, which knows version %d of the commands; this formation works with version %d: install what the other nodes run", n.Name, n.Version, n.Protocol, e.Cluster.Gate)
	}
	if n.Group < 0 {
		return refuse("group %d: groups are numbered from 0 (the coordinator)", n.Group)
	}
	for _, id := range e.NodeIDs() {
		o := e.Nodes[id]
		switch {
		case id == n.ID:
		case o.Name == n.Name:
			return refuse("the name %s is taken by another node (%s at %s): choose another with --name, or remove that node first", n.Name, o.ID, o.Peer)
		case o.Peer == n.Peer || (n.Postgres != "" && o.Postgres == n.Postgres):
			return refuse("address %s / %s is taken by node %s", n.Peer, n.Postgres, o.Name)
		}
	}
	if old, ok := e.Nodes[n.ID]; ok {
		if old.Group != n.Group {
			return refuse("node %s belongs to group %d: remove it before it joins group %d", old.Name, old.Group, n.Group)
		}
		n.Joined, n.Report = old.Joined, old.Report
	} else {
		n.Joined = e.index
	}
	e.Nodes[n.ID] = n
	if _, ok := e.Groups[n.Group]; !ok {
		e.Groups[n.Group] = Group{ID: n.Group, Mode: e.Cluster.Settings.DefaultMode}
	}
	return done
}

func (e entry) nodeRemove(c NodeRemove) Result {
	n, ok := e.Nodes[c.Node]
	if !ok {
		return refuse("node %s is not a member of this cluster", c.Node)
	}
	g := e.Groups[n.Group]
	only := len(e.Members(n.Group)) == 1
	last := only && g.Retired // nobody is left to hand over to, and nobody misses it
	switch {
	case last:
	case only && g.SystemID != "" && n.Group != 0:
		return refuse("node %s is the only node of group %d, whose data would go with it: retire the group first (matriarch citus remove-group %d)", n.Name, n.Group, n.Group)
	case only && g.SystemID != "":
		return refuse("node %s is the only node of the coordinator's group, whose data would go with it", n.Name)
	case g.Lease.Holder == c.Node:
		return refuse("node %s holds the lease of group %d: fail over to another node first", n.Name, n.Group)
	case slices.ContainsFunc(g.pairs(), func(p Pair) bool { return p.Has(c.Node) }):
		return refuse("node %s is in the synchronous set of group %d: stop it and wait until the group has let it go", n.Name, n.Group)
	case g.LastHolder == c.Node && !g.Held() && g.SystemID != "":
		return refuse("node %s was the last primary of group %d and nobody has taken over: its data may be the only copy", n.Name, n.Group)
	}
	delete(e.Nodes, c.Node)
	e.Removed[c.Node] = n.Name
	if g.ClaimedBy == c.Node && g.SystemID == "" {
		g.ClaimedBy = ""
		e.Groups[g.ID] = g
	}
	if len(e.Members(n.Group)) == 0 {
		delete(e.Groups, n.Group)
	}
	return done
}

func (e entry) tokenDrop(c TokenDrop) Result {
	if _, ok := e.Tokens[c.ID]; !ok {
		return refuse("join token %s is not known", c.ID)
	}
	delete(e.Tokens, c.ID)
	return done
}

func (e entry) settingsPut(c SettingsPut) Result {
	if c.Settings.TTL < MinTTL {
		return refuse("ttl %s: at least %s, or one change of the Raft leader stops every primary", c.Settings.TTL, MinTTL)
	}
	e.Cluster.Settings = c.Settings
	return done
}

// MinTTL is the shortest lease: a healthy primary must outlive one election of a Raft leader.
const MinTTL = 4 * time.Second

func (e entry) recovered(c Recovered) Result {
	if c.Incarnation <= e.Cluster.Incarnation {
		return refuse("incarnation %d is not newer than %d", c.Incarnation, e.Cluster.Incarnation)
	}
	e.Cluster.Incarnation = c.Incarnation
	for _, id := range e.GroupIDs() {
		g := e.Groups[id]
		g.Sync.Unknown, g.Op, g.Planned, g.Ended = true, nil, nil, nil
		e.Groups[id] = g
		e.note(id, History{Kind: "recovered", Epoch: g.Epoch, Text: fmt.Sprintf("control plane rebuilt, incarnation %d: what the synchronous set was is unknown", c.Incarnation)})
	}
	return done
}

func (e entry) tick(c Tick) Result {
	for id, r := range c.Reports {
		if n, ok := e.Nodes[id]; ok {
			r.At = e.at
			n.Report = r
			e.Nodes[id] = n
		}
	}
	return done
}
