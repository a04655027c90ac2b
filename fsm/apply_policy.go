package fsm

import "fmt"

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
	if c.Paused != nil {
		g.Paused = *c.Paused
	}
	if c.Early != nil {
		g.NoEarly = !*c.Early
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
		e.note(c.Group, History{Kind: "retired", Epoch: g.Epoch, Text: text})
	}
	e.Groups[c.Group] = g
	return done
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
	e.note(g.ID, History{Kind: "replication", Epoch: g.Epoch, Text: "replication is " + g.Replication() + "; it was " + before.Replication()})
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
