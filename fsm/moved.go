package fsm

import (
	"maps"
	"reflect"
)

// Moved reports whether the later of two states differs in more than its index, the remembered requests and the times and positions
// in the nodes' reports. Most entries are ticks, which move nothing: who acts on the state need not be woken for them.
func Moved(prev, next *State) bool {
	switch {
	case !reflect.DeepEqual(prev.Cluster, next.Cluster), !maps.Equal(prev.Removed, next.Removed):
		return true
	case !maps.EqualFunc(prev.Nodes, next.Nodes, sameNode), !maps.EqualFunc(prev.Groups, next.Groups, sameValue):
		return true
	}
	return !maps.EqualFunc(prev.Tokens, next.Tokens, sameValue) || !maps.EqualFunc(prev.History, next.History, sameHistory)
}

func sameNode(a, b Node) bool {
	if !a.Report.SameButLSN(b.Report) {
		return false
	}
	a.Report, b.Report = Report{}, Report{}
	return reflect.DeepEqual(a, b)
}

// sameHistory relies on lines being added at the end only.
func sameHistory(a, b []History) bool {
	return len(a) == len(b) && (len(a) == 0 || a[len(a)-1].Index == b[len(b)-1].Index)
}

func sameValue[T any](a, b T) bool { return reflect.DeepEqual(a, b) }
