package admin

import (
	"fmt"

	"matriarch/fsm"
)

// Upgrade is how far the formation's binaries and the command version in its log have come.
type Upgrade struct {
	Gate  int           `json:"gate"`  // version of the commands that the formation works with
	Known int           `json:"known"` // version that every node's binary knows
	Nodes []UpgradeNode `json:"nodes"`
}

// UpgradeNode is one node's binary.
type UpgradeNode struct {
	Name     string `json:"member"`
	Version  string `json:"version"`
	Protocol int    `json:"protocol"` // command version that it knows
}

// NewUpgrade reads the state.
func NewUpgrade(s *fsm.State) Upgrade {
	u := Upgrade{Gate: s.Cluster.Gate}
	for _, id := range s.NodeIDs() {
		n := s.Nodes[id]
		u.Nodes = append(u.Nodes, UpgradeNode{Name: n.Name, Version: n.Version, Protocol: max(n.Protocol, 1)})
		if p := max(n.Protocol, 1); u.Known == 0 || p < u.Known {
			u.Known = p
		}
	}
	return u
}

// Open reports whether every node knows a newer version than the formation works with: it may be finished, or still be taken back.
func (u Upgrade) Open() bool { return u.Known > u.Gate }

func upgradeNotes(s *fsm.State) []string {
	u := NewUpgrade(s)
	if !u.Open() {
		return nil
	}
	return []string{fmt.Sprintf("every node runs a matriarch that knows command version %d, and the formation still works with %d, so that each may go back: "+
		"`matriarch upgrade finish` turns the new one on", u.Known, u.Gate)}
}
