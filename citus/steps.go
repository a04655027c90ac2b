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

// CopyRow puts a row that the coordinator has into a worker's copy.
type CopyRow struct {
	Node fsm.GroupID // whose copy
	Row  Row
}

// DropRow takes a row that the coordinator does not have out of a worker's copy.
type DropRow struct {
	Node fsm.GroupID // whose copy
	Row  Row
}

// RecoverPrepared finishes the distributed transactions that a node left prepared elsewhere.
type RecoverPrepared struct{ Node fsm.GroupID }

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
	return fmt.Sprintf("row %d at %s missing in the copy of group %d", s.Row.NodeID, s.Row.Addr, s.Node)
}

func (s DropRow) String() string {
	return fmt.Sprintf("row %d at %s left over in the copy of group %d", s.Row.NodeID, s.Row.Addr, s.Node)
}

func (s RecoverPrepared) String() string {
	return fmt.Sprintf("prepared transactions of group %d due for recovery", s.Node)
}
