package citus

import (
	"slices"

	"matriarch/fsm"
)

// Row is one row of pg_dist_node.
type Row struct {
	NodeID      int
	Group       fsm.GroupID
	Addr        Addr
	Rack        string
	Role        string // primary, secondary, unavailable
	Cluster     string
	Active      bool
	HasMetadata bool
	Synced      bool // as the coordinator sees it; meaningless in a worker's copy
	TakesShards bool
	Clone       bool // made by citus_add_clone_node: the operator's own
}

func (r Row) primary() bool { return r.Role == rolePrimary }

func (r Row) secondary() bool { return r.Role == roleSecondary && !r.Clone }

const (
	rolePrimary    = "primary"
	roleSecondary  = "secondary"
	defaultCluster = "default"
)

// Actual is what one primary shows of itself and of its copy of the metadata.
type Actual struct {
	Missing    bool   // the database does not exist
	Extension  string // version; empty: not created
	Ready      bool   // the table of the conductor's term is there, and what a Pool wants its links to find
	InRecovery bool
	Timeline   fsm.Timeline // 0 in recovery
	LocalGroup fsm.GroupID
	Rows       []Row          // by nodeid
	Pool       map[int]string // pg_dist_poolinfo, by nodeid
	authinfo   string         // hash of what the superuser's links find in pg_dist_authinfo; empty: nothing
}

// rowAt finds the row with an address.
func (a Actual) rowAt(at Addr) (Row, bool) {
	i := slices.IndexFunc(a.Rows, func(r Row) bool { return r.Addr == at })
	if i < 0 {
		return Row{}, false
	}
	return a.Rows[i], true
}

// rowOf finds the row of a group's primary.
func (a Actual) rowOf(g fsm.GroupID) (Row, bool) {
	for _, r := range a.Rows {
		if r.Group == g && r.primary() {
			return r, true
		}
	}
	return Row{}, false
}
