package fsm

import (
	"fmt"
	"slices"
	"strings"
)

func (e entry) groupSet(c GroupSet) Result {
	g, ok := e.Groups[c.Group]
	if !ok {
		return refuse("group %d is not known", c.Group)
	}
	if c.Mode != "" && !c.Mode.Known() {
		return refuse("mode %q: use quorum, on or off", c.Mode)
	}
	if c.SyncCount != nil && (*c.SyncCount < 1 || *c.SyncCount > MaxSyncCount) {
		return refuse("synchronous_node_count %d: 1 to %d", *c.SyncCount, MaxSyncCount)
	}
	if c.SyncLag != nil && *c.SyncLag < 0 {
		return refuse("maximum_lag_on_syncnode %d: bytes, or 0 for no limit", *c.SyncLag)
	}
	if c.Retired != nil && *c.Retired && c.Group == 0 {
		return refuse("group 0 is the coordinator: it cannot be retired")
	}
	e.replication(&g, c)
	if c.Paused != nil && g.Paused != *c.Paused {
		g.Paused = *c.Paused
		e.notePaused(g, c.By)
	}
	if c.Early != nil {
		g.NoEarly = !*c.Early
	}
	if c.Failsafe != nil && g.Failsafe != *c.Failsafe {
		g.Failsafe = *c.Failsafe
		text := "failsafe is off: without a majority the primary stops at the end of its lease"
		if g.Failsafe {
			text = "failsafe is on: without a majority the primary stays up as long as every member gives its word"
		}
		e.note(c.Group, History{Kind: "failsafe", Epoch: g.Epoch, Text: text + askedBy(c.By)})
	}
	if c.Sick != nil {
		g.NoSick = !*c.Sick
	}
	if c.Retired != nil && g.Retired != *c.Retired {
		g.Retired = *c.Retired
		text := "group taken back into the Citus metadata"
		if g.Retired {
			text = "group retired: it leaves the Citus metadata"
		}
		e.note(c.Group, History{Kind: "retired", Epoch: g.Epoch, Text: text + askedBy(c.By)})
	}
	e.Groups[c.Group] = g
	return done
}

// notePaused needs a name: from before there was one, logs note nothing, and must replay to the same state.
func (e entry) notePaused(g Group, by string) {
	if by == "" {
		return
	}
	text := "paused: no automatic change of primary"
	if !g.Paused {
		text = "no longer paused"
	}
	e.note(g.ID, History{Kind: "paused", Epoch: g.Epoch, Text: text + askedBy(by)})
}

func askedBy(who string) string {
	if who == "" {
		return ""
	}
	return ", asked for by " + who
}

// MaxSyncCount bounds synchronous_node_count.
const MaxSyncCount = 64

// replication changes how a group replicates. The holder's synchronous set follows, one joint change after the other.
func (e entry) replication(g *Group, c GroupSet) {
	before := *g
	if c.Mode != "" {
		g.Mode = c.Mode
	}
	if c.Strict != nil {
		g.Strict = *c.Strict
	}
	if c.SyncCount != nil {
		g.SyncCount = *c.SyncCount
	}
	if c.SyncLag != nil {
		g.SyncLag = *c.SyncLag
	}
	if before.Mode == g.Mode && before.Strict == g.Strict && before.Confirmers() == g.Confirmers() && before.SyncLag == g.SyncLag {
		return
	}
	e.note(g.ID, History{Kind: "replication", Epoch: g.Epoch, Text: "replication is " + g.Replication() + "; it was " + before.Replication() + askedBy(c.By)})
}

// Replication says in words how a group replicates.
func (g Group) Replication() string {
	if g.Mode == Off {
		return "off"
	}
	text := fmt.Sprintf("%s, synchronous_node_count %d", g.Mode, g.Confirmers())
	if g.Strict {
		text += ", strict"
	}
	if g.SyncLag > 0 {
		text += fmt.Sprintf(", maximum_lag_on_syncnode %d", g.SyncLag)
	}
	return text
}

// eligibleSet takes members in. The set only grows while its holder lives, so that an old copy of it never has a node too many; and
// only a holder that has been promoted changes it, since nobody's word is out any more by then.
func (e entry) eligibleSet(c EligibleSet) Result {
	g := e.Groups[c.Group]
	if res := e.holderMayChange(g, c.Epoch); !res.OK {
		return res
	}
	if !g.Opened() {
		return refuse("group %d: epoch %s has not made its first synchronous commit yet", c.Group, c.Epoch)
	}
	if !g.Failsafe && g.Eligible == nil {
		return refuse("group %d: failsafe is off", c.Group)
	}
	nodes := NewPair(0, append(slices.Clone(c.Nodes), g.Eligible...)...).S
	if !slices.Contains(nodes, g.Lease.Holder) {
		return refuse("group %d: the primary itself must be among those that may take over", c.Group)
	}
	for _, id := range nodes {
		if n, ok := e.Nodes[id]; !ok || n.Group != c.Group {
			return refuse("group %d: %s is not a member", c.Group, e.Name(id))
		}
	}
	g.Eligible = nodes
	e.Groups[c.Group] = g
	return done
}

func (e entry) names(ids []NodeID) string {
	var out []string
	for _, id := range ids {
		out = append(out, e.Name(id))
	}
	return strings.Join(out, ", ")
}
