package fsm

import "slices"

// Through is the pair to ask for on the way to next: next itself, or one that covers what may be acknowledged on the way.
//
// PostgreSQL's walsenders take up a new synchronous_standby_names one by one, and each releases commits by the k that it has read, counting
// everybody who has found himself in the list that he has read (SyncRepGetSyncRecPtr). On the way from 1 of (a) to 2 of (a, b) one
// may see b alone, as 1 of (a, b). An election must know of that, so some pair in force has the least k of all of them and all their members.
func (g Group) Through(next Pair, member func(NodeID) bool) Pair {
	all := append(slices.Clone(g.Sync.Pairs), next)
	k, ids := next.K, []NodeID{}
	for _, p := range all {
		if p.K == 0 { // nobody but the last primary has everything then, which covers the rest
			return next
		}
		k = min(k, p.K)
		for _, id := range p.S {
			if member(id) {
				ids = append(ids, id)
			}
		}
	}
	cover := NewPair(k, ids...)
	if slices.ContainsFunc(all, cover.within) {
		return next
	}
	return cover
}

// within reports whether an election that meets q needs everything that this pair needs.
func (p Pair) within(q Pair) bool {
	return q.K <= p.K && !slices.ContainsFunc(p.S, func(id NodeID) bool { return !q.Has(id) })
}
