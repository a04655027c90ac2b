package citus

import (
	"context"
	"fmt"
	"sync"

	"matriarch/fsm"
)

// DatabaseStatus compares one database's metadata on every node with what is wanted.
type DatabaseStatus struct {
	Database    string       `json:"database"`
	Wanted      []WantedRow  `json:"wanted"`
	Nodes       []NodeStatus `json:"nodes"`
	Differences []string     `json:"differences,omitempty"` // what the next rounds will put right
	Problems    []string     `json:"problems,omitempty"`    // what needs an operator
}

// Right reports whether every node answered, Citus has told all of them what it had to, and nothing differs.
func (d DatabaseStatus) Right() bool {
	for _, n := range d.Nodes {
		if n.Error != "" {
			return false
		}
		for _, r := range n.Rows {
			if n.Group == 0 && r.HasMetadata && !r.Synced {
				return false
			}
		}
	}
	return len(d.Differences) == 0 && len(d.Problems) == 0
}

// WantedRow is one row that every copy should have.
type WantedRow struct {
	Group   fsm.GroupID `json:"group"`
	Role    string      `json:"role"`
	Addr    string      `json:"addr"` // host:port; none while the group has no primary
	Cluster string      `json:"cluster"`
	Keep    bool        `json:"keep,omitempty"` // a standby that keeps a row it has, but would get none
}

// NodeStatus is what the primary of one group shows.
type NodeStatus struct {
	Group      fsm.GroupID `json:"group"`
	Addr       string      `json:"addr"`
	Error      string      `json:"error,omitempty"`
	Extension  string      `json:"extension,omitempty"` // version; empty: not created
	InRecovery bool        `json:"in_recovery,omitempty"`
	Rows       []NodeRow   `json:"rows"`
}

// NodeRow is one row of a node's pg_dist_node with its entry in pg_dist_poolinfo.
type NodeRow struct {
	NodeID      int         `json:"node_id"`
	Group       fsm.GroupID `json:"group"`
	Role        string      `json:"role"`
	Addr        string      `json:"addr"`
	Cluster     string      `json:"cluster"`
	Active      bool        `json:"active"`
	HasMetadata bool        `json:"has_metadata"`
	Synced      bool        `json:"metadata_synced"` // only the coordinator's says something
	TakesShards bool        `json:"takes_shards"`
	Pool        string      `json:"pool,omitempty"`
}

// Status looks at the primaries of every database through sessions of its own. It changes nothing, needs no term and works on
// any node.
func (p *Pool) Status(ctx context.Context, wants []Wanted) []DatabaseStatus {
	out := make([]DatabaseStatus, len(wants))
	var wg sync.WaitGroup
	for i, want := range wants {
		wg.Go(func() { out[i] = p.statusOf(ctx, want) })
	}
	wg.Wait()
	return out
}

func (p *Pool) statusOf(ctx context.Context, want Wanted) DatabaseStatus {
	want.Recover = false
	seen, failed := p.look(ctx, want, p.glance)
	d := DatabaseStatus{Database: want.Database, Problems: Problems(want, seen)}
	for _, s := range Diff(want, seen) {
		d.Differences = append(d.Differences, s.String())
	}
	for _, g := range want.groups() {
		d.Nodes = append(d.Nodes, nodeStatus(g, want.Primaries[g].Addr, seen, failed[g]))
		if want.gone(g) {
			continue
		}
		d.Wanted = append(d.Wanted, WantedRow{Group: g, Role: rolePrimary, Addr: want.Primaries[g].Addr.String(), Cluster: defaultCluster})
		for _, s := range want.Secondaries[g] {
			if s.Standing != Away {
				d.Wanted = append(d.Wanted, WantedRow{Group: g, Role: roleSecondary, Addr: s.Addr.String(), Cluster: s.NodeCluster, Keep: s.Standing == Doubtful})
			}
		}
	}
	return d
}

func nodeStatus(g fsm.GroupID, at Addr, seen map[fsm.GroupID]Actual, err error) NodeStatus {
	a, answered := seen[g]
	n := NodeStatus{Group: g, Addr: at.String(), Extension: a.Extension, InRecovery: a.InRecovery}
	switch {
	case err != nil:
		n.Error = err.Error()
	case at.IsZero():
		n.Error = fmt.Sprintf("group %d has no primary now", g)
	case !answered || a.Missing:
		n.Error = "the database does not exist there yet"
	}
	for _, r := range a.Rows {
		n.Rows = append(n.Rows, NodeRow{
			NodeID: r.NodeID, Group: r.Group, Role: r.Role, Addr: r.Addr.String(), Cluster: r.Cluster, Active: r.Active,
			HasMetadata: r.HasMetadata, Synced: r.Synced, TakesShards: r.TakesShards, Pool: a.Pool[r.NodeID],
		})
	}
	return n
}

// glance observes through a session that ends at once.
func (p *Pool) glance(ctx context.Context, _ fsm.GroupID, at place) (Actual, error) {
	ctx, cancel := context.WithTimeout(ctx, p.times(connectTimeout+observeTimeout))
	defer cancel()
	c, err := p.dialFor(ctx, 0, at.addr, at.database, closeTimeout)
	if err != nil {
		return Actual{}, err
	}
	defer closeConn(c)
	return Observe(ctx, c)
}
