package decide

import "matriarch/fsm"

// UnfinishedRewind begins what Local.Unfinished says of a rewind.
const UnfinishedRewind = "unfinished rewind"

// RewindStop is the value of rewind_failure that leaves a failed rewind to an operator; RewindClone the other.
const (
	RewindStop  = "stop"
	RewindClone = "clone"
)

func (f Facts) needsClone() bool { return !f.Local.HasData || f.Local.Unfinished != "" }

// cloneSource prefers a streaming standby tagged for it, to spare the primary.
func (f Facts) cloneSource() fsm.NodeID {
	for _, n := range f.State.Members(f.Group.ID) {
		if n.Tags.CloneFrom && n.ID != f.Self && n.ID != f.Group.Lease.Holder && n.Report.State == "streaming" && n.Report.Epoch == f.Epoch {
			return n.ID
		}
	}
	return f.Group.Lease.Holder
}
