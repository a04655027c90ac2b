package decide

// UnfinishedRewind begins what Local.Unfinished says of a rewind.
const UnfinishedRewind = "unfinished rewind"

// RewindStop is the value of rewind_failure that leaves a failed rewind to an operator; RewindClone the other.
const (
	RewindStop  = "stop"
	RewindClone = "clone"
)
