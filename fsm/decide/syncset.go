package decide

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"matriarch/fsm"
)

const (
	// AttachTimeout is how long a planned holder waits for its first synchronous commit before the group degrades.
	AttachTimeout = time.Second
	// maxSyncLag keeps a standby out of the synchronous set, where commits would wait for it, until it has nearly caught up.
	maxSyncLag = 16 << 20
)

// PairFor chooses the synchronous pair of a new holder: k of those who can follow it at once. A strict group that has too few of
// them names everybody who might come: its commits wait until k have.
func PairFor(g fsm.Group, followers, all []fsm.NodeID) fsm.Pair {
	switch k := g.Confirmers(); {
	case g.Mode == fsm.Off:
		return fsm.Pair{}
	case g.Holds() && len(followers) < k:
		return fsm.NewPair(k, all...)
	case len(followers) == 0:
		return fsm.Pair{}
	default:
		return fsm.NewPair(min(k, len(followers)), followers...)
	}
}

// SyncOrder is the order in which a group of mode on prefers its standbys: by tag, then by name. nil in other modes.
func SyncOrder(s *fsm.State, g fsm.Group, ids []fsm.NodeID) []fsm.NodeID {
	if g.Mode != fsm.On {
		return nil
	}
	out := slices.Clone(ids)
	slices.SortFunc(out, func(a, b fsm.NodeID) int {
		return cmp.Or(cmp.Compare(s.Nodes[b].Tags.SyncPriority, s.Nodes[a].Tags.SyncPriority), cmp.Compare(s.Name(a), s.Name(b)), cmp.Compare(a, b))
	})
	return out
}

// syncChange says which pair the primary should ask for next, if any. Where k and a member change, one comes after the other.
func (f Facts) syncChange() (fsm.Pair, string, bool) {
	p, why, ok := f.wantedChange()
	if !ok || f.State.Cluster.Gate < 2 {
		return p, why, ok
	}
	t := f.Group.Sync.Target()
	via := f.Group.Through(p, func(id fsm.NodeID) bool { return id != f.Self && slices.Contains(f.members(), id) })
	if !via.Equal(p) {
		why = fmt.Sprintf("by way of %d of %s: %s", via.K, f.names(via.S), why)
	}
	return via, why, !via.Equal(t)
}

// wantedChange is where it is to lead: first who is missing leaves, then k follows the settings, then who streams enters.
func (f Facts) wantedChange() (fsm.Pair, string, bool) {
	target := f.Group.Sync.Target()
	if f.Group.Mode == fsm.Off {
		return fsm.Pair{}, fmt.Sprintf("commits wait for nobody any more, not for %d of %s: mode off", target.K, f.names(target.S)), target.K > 0
	}
	for _, id := range target.S {
		if why := f.leaves(id); why != "" && f.maySpare(target, id) {
			return f.pairOf(without(target.S, id)), fmt.Sprintf("%s leaves the synchronous set%s", f.State.Name(id), why), true
		}
	}
	if p := f.pairOf(target.S); p.K != target.K {
		return p, fmt.Sprintf("commits wait for %d of %s, not %d: %s", p.K, f.names(p.S), target.K, f.Group.Replication()), true
	}
	waits := f.Group.Holds() && f.present(target.S) < target.K
	if !waits && (f.Group.Sync.Joint() || !f.Group.Opened()) {
		return fsm.Pair{}, "", false
	}
	for _, s := range f.PG.Senders {
		n, member := f.State.Nodes[s.Node]
		if member && s.Streaming && !target.Has(s.Node) && !n.Tags.NoSync && s.Lag <= f.joinLag() {
			return f.pairOf(append([]fsm.NodeID{s.Node}, target.S...)), fmt.Sprintf("%s joins the synchronous set: streams, %d bytes behind", n.Name, s.Lag), true
		}
	}
	return fsm.Pair{}, "", false
}

// pairOf is how many of a set shall confirm.
func (f Facts) pairOf(s []fsm.NodeID) fsm.Pair {
	k := f.Group.Confirmers()
	if !f.Group.Holds() {
		k = min(k, len(s))
	}
	return fsm.NewPair(k, s...)
}

// leaves says why a member of the set should be in it no more, or "".
func (f Facts) leaves(id fsm.NodeID) string {
	patience := f.Settings.DegradeAfter
	if f.Group.Op.Pausing() {
		patience = min(patience, AttachTimeout) // clients wait for it
	}
	n, member := f.State.Nodes[id]
	i := slices.IndexFunc(f.PG.Senders, func(s Sender) bool { return s.Node == id })
	switch {
	case !member:
		return ": it is no member"
	case n.Tags.NoSync:
		return ": tagged nosync"
	case i < 0:
		return ""
	}
	switch s := f.PG.Senders[i]; {
	case !s.Streaming && s.Missing >= patience:
		return fmt.Sprintf(": missing for %s", s.Missing.Round(100*time.Millisecond))
	case s.Streaming && f.Group.SyncLag > 0 && s.Lag > f.Group.SyncLag:
		return fmt.Sprintf(": %d bytes behind, more than maximum_lag_on_syncnode %d", s.Lag, f.Group.SyncLag)
	}
	return ""
}

// maySpare: a strict group lets nobody go before enough others are there.
func (f Facts) maySpare(target fsm.Pair, id fsm.NodeID) bool {
	return !f.Group.Holds() || f.present(without(target.S, id)) >= f.Group.Confirmers()
}

// present counts those who stream and have no reason to leave.
func (f Facts) present(ids []fsm.NodeID) (n int) {
	for _, s := range f.PG.Senders {
		if s.Streaming && slices.Contains(ids, s.Node) && f.leaves(s.Node) == "" {
			n++
		}
	}
	return n
}

// joinLag is well below the lag at which a member leaves, so that none comes and goes.
func (f Facts) joinLag() int64 {
	if f.Group.SyncLag > 0 {
		return min(maxSyncLag, f.Group.SyncLag/2)
	}
	return maxSyncLag
}

func without(ids []fsm.NodeID, id fsm.NodeID) []fsm.NodeID {
	return slices.DeleteFunc(slices.Clone(ids), func(x fsm.NodeID) bool { return x == id })
}
