package citus

import (
	"fmt"

	"matriarch/fsm"
)

// Step is one change of the metadata, safe to repeat. The set is closed.
type Step interface {
	// On is the group on whose primary the step runs.
	On() fsm.GroupID
	String() string
}

// CreateExtension makes the database, the extension and what the conductor needs beside them on a group's primary.
type CreateExtension struct{ Group fsm.GroupID }

// SetCoordinatorHost makes the coordinator's own row when there is none.
type SetCoordinatorHost struct{ Addr Addr }

// AddNode registers a worker group's primary. Citus copies all metadata there.
type AddNode struct {
	Group fsm.GroupID
	Addr  Addr
}

// AddSecondary registers a standby. Citus does not connect to it.
type AddSecondary struct {
	Group       fsm.GroupID
	Addr        Addr
	NodeCluster string
}

// ActivateNode brings back a worker that Citus passes over. Citus copies all metadata there.
type ActivateNode struct{ Row Row }

// RemoveNode takes a row away for good. Citus refuses it while shards need the group.
type RemoveNode struct{ Row Row }

// UpdateNode gives a row of the coordinator another address, by Citus' own function: the daemon carries it on.
type UpdateNode struct {
	NodeID   int
	Group    fsm.GroupID
	From, To Addr
}

// UpdateRow gives a row in a worker's copy another address.
type UpdateRow struct {
	Node     fsm.GroupID // whose copy
	NodeID   int
	From, To Addr
}

// CopyRow puts a row that the coordinator has into a worker's copy, or one that a worker has back into the coordinator's.
type CopyRow struct {
	Node fsm.GroupID // whose copy
	Row  Row
}

// DropRow takes a row that the coordinator does not have out of a worker's copy.
type DropRow struct {
	Node fsm.GroupID // whose copy
	Row  Row
}

// FixRow changes what a row of the coordinator says of its node, the address excepted.
type FixRow struct{ Was, Row Row }

// SetPool leads a node's connections to another node through the pool beside it.
type SetPool struct {
	Node   fsm.GroupID // whose pg_dist_poolinfo
	NodeID int
	Info   string
}

// DropPool takes such an entry away.
type DropPool struct {
	Node   fsm.GroupID // whose pg_dist_poolinfo
	NodeID int
}

// RecoverPrepared finishes the distributed transactions that a node left prepared elsewhere.
type RecoverPrepared struct{ Node fsm.GroupID }

// addresses leaves of steps those that change an address.
func addresses(steps []Step) []Step {
	var out []Step
	for _, s := range steps {
		switch s.(type) {
		case UpdateNode, UpdateRow:
			out = append(out, s)
		}
	}
	return out
}

// On is the group whose primary gets the extension.
func (s CreateExtension) On() fsm.GroupID { return s.Group }

// On is the coordinator.
func (SetCoordinatorHost) On() fsm.GroupID { return 0 }

// On is the coordinator.
func (AddNode) On() fsm.GroupID { return 0 }

// On is the coordinator.
func (RemoveNode) On() fsm.GroupID { return 0 }

// On is the coordinator.
func (UpdateNode) On() fsm.GroupID { return 0 }

// On is the worker whose copy it is.
func (s UpdateRow) On() fsm.GroupID { return s.Node }

// On is the worker whose copy it is.
func (s CopyRow) On() fsm.GroupID { return s.Node }

// On is the worker whose copy it is.
func (s DropRow) On() fsm.GroupID { return s.Node }

// On is the coordinator.
func (AddSecondary) On() fsm.GroupID { return 0 }

// On is the coordinator.
func (ActivateNode) On() fsm.GroupID { return 0 }

// On is the coordinator.
func (FixRow) On() fsm.GroupID { return 0 }

// On is the node whose connections they are.
func (s SetPool) On() fsm.GroupID { return s.Node }

// On is the node whose connections they are.
func (s DropPool) On() fsm.GroupID { return s.Node }

// On is the node that began the transactions.
func (s RecoverPrepared) On() fsm.GroupID { return s.Node }

func (s CreateExtension) String() string {
	return fmt.Sprintf("group %d lacks the database, the extension or the conductor's table", s.Group)
}

func (s SetCoordinatorHost) String() string {
	return fmt.Sprintf("coordinator has no row; wanted %s", s.Addr)
}

func (s AddNode) String() string {
	return fmt.Sprintf("group %d has no row; wanted %s", s.Group, s.Addr)
}

func (s RemoveNode) String() string {
	return fmt.Sprintf("row %d of group %d at %s has to go", s.Row.NodeID, s.Row.Group, s.Row.Addr)
}

func (s UpdateNode) String() string {
	return fmt.Sprintf("row %d of group %d led to %s; wanted %s", s.NodeID, s.Group, s.From, s.To)
}

func (s UpdateRow) String() string {
	return fmt.Sprintf("row %d led to %s in the copy of group %d; wanted %s", s.NodeID, s.From, s.Node, s.To)
}

func (s CopyRow) String() string {
	if s.Node == 0 {
		return fmt.Sprintf("row %d at %s missing on the coordinator", s.Row.NodeID, s.Row.Addr)
	}
	return fmt.Sprintf("row %d at %s missing in the copy of group %d", s.Row.NodeID, s.Row.Addr, s.Node)
}

func (s DropRow) String() string {
	return fmt.Sprintf("row %d at %s left over in the copy of group %d", s.Row.NodeID, s.Row.Addr, s.Node)
}

func (s RecoverPrepared) String() string {
	return fmt.Sprintf("prepared transactions of group %d due for recovery", s.Node)
}

func (s AddSecondary) String() string {
	return fmt.Sprintf("standby %s of group %d has no row", s.Addr, s.Group)
}

func (s ActivateNode) String() string {
	return fmt.Sprintf("row %d of group %d at %s is inactive or without metadata", s.Row.NodeID, s.Row.Group, s.Row.Addr)
}

func (s FixRow) String() string {
	return fmt.Sprintf("row %d was %s; wanted %s", s.Row.NodeID, says(s.Was), says(s.Row))
}

// says describes what FixRow can change.
func says(r Row) string {
	active := "active"
	if !r.Active {
		active = "inactive"
	}
	return fmt.Sprintf("%s %s of group %d in cluster %s", active, r.Role, r.Group, r.Cluster)
}

func (s SetPool) String() string {
	return fmt.Sprintf("pool entry of row %d missing or different on group %d; wanted %s", s.NodeID, s.Node, s.Info)
}

func (s DropPool) String() string {
	return fmt.Sprintf("pool entry of row %d left over on group %d", s.NodeID, s.Node)
}
