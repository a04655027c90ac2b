package fsm

import (
	"fmt"
	"slices"
)

func (e entry) claim(c Claim) Result {
	g, ok := e.Groups[c.Group]
	n, member := e.Nodes[c.Node]
	switch {
	case !ok || !member || n.Group != c.Group:
		return refuse("claim group %d: node %s is not a member", c.Group, c.Node)
	case g.SystemID != "":
		return refuse("group %d is initialised already", c.Group)
	}
	g.ClaimedBy = c.Node
	e.Groups[c.Group] = g
	return done
}

func (e entry) initialised(c Initialised) Result {
	g, ok := e.Groups[c.Group]
	switch {
	case !ok:
		return refuse("group %d is not known", c.Group)
	case g.SystemID == c.SystemID && g.SystemID != "":
		return done
	case g.SystemID != "":
		return refuse("group %d has system identifier %s; the data directory of %s has %s and belongs to another database cluster", c.Group, g.SystemID, e.Name(c.Node), c.SystemID)
	case g.ClaimedBy != c.Node:
		return refuse("group %d may be initialised by %s only", c.Group, e.Name(g.ClaimedBy))
	}
	g.SystemID, g.LastHolder = c.SystemID, c.Node
	g.Sync.Pairs = []Pair{{}}
	// The zero epoch made the timeline the group begins with.
	g.Grants = []Grant{{Holder: c.Node, Timeline: c.Timeline}}
	e.Groups[c.Group] = g
	e.note(c.Group, History{Kind: "initialised", Node: c.Node, Timeline: c.Timeline, Text: fmt.Sprintf("group initialised by %s", e.Name(c.Node))})
	return done
}

func (e entry) grant(c GrantCmd) Result {
	g := e.Groups[c.Group]
	n, ok := e.Nodes[c.Holder]
	switch {
	case !ok || n.Group != c.Group:
		return refuse("grant group %d: node %s is not a member", c.Group, c.Holder)
	case g.SystemID == "":
		return refuse("grant group %d: it is not initialised", c.Group)
	case g.Held() && !g.Lease.Early:
		return refuse("grant group %d: %s holds epoch %s", c.Group, e.Name(g.Lease.Holder), g.Lease.Epoch)
	case !g.MayHold(c.Holder):
		return refuse("grant group %d: %s joined without the last primary's knowledge, which may stay up by failsafe: only %s may take over", c.Group, e.Name(c.Holder), e.names(g.Eligible))
	case g.Epoch != c.Prev:
		return refuse("grant group %d: the epoch is %s, not %s", c.Group, g.Epoch, c.Prev)
	case c.Instance == "" || c.TTL <= 0:
		return refuse("grant group %d: instance or ttl missing", c.Group)
	}
	c.Pair = NewPair(c.Pair.K, c.Pair.S...)
	if res := e.checkPair(g, c.Pair, c.Holder, g.Confirmers()); !res.OK {
		return res
	}
	g.Epoch = e.nextEpoch(g)
	g.Lease = Lease{Holder: c.Holder, Instance: c.Instance, Epoch: g.Epoch, TTL: c.TTL}
	g.LastHolder = c.Holder
	// The pairs in force stay until the new one is confirmed: two losses in a row must not elect a node that has neither.
	if g.Ended != nil && g.Ended.Epoch == c.Prev {
		g.Sync.Pairs = nil // they are kept with the end
	}
	g.Sync.Pairs = addPair(g.Sync.Pairs, c.Pair)
	gr := Grant{Epoch: g.Epoch, Holder: c.Holder, From: c.From}
	if c.Adopt != 0 {
		gr.Timeline, gr.Parent = c.Adopt, c.Adopt
	}
	g.Grants = append(e.roomForGrant(g.Grants), gr)
	switch {
	case g.Op.promotes(c.Holder):
		op := *g.Op
		op.Epoch, g.Op = g.Epoch, &op
	case g.Op.Pausing():
		e.over(&g, false, fmt.Sprintf("%s became primary instead", e.Name(c.Holder)))
	default:
		g.Op = nil
	}
	e.Groups[c.Group] = g
	e.note(c.Group, History{Kind: "granted", Node: c.Holder, Epoch: g.Epoch, LSN: c.LSN, Text: fmt.Sprintf("%s may become primary: %s", e.Name(c.Holder), c.Reason)})
	return Result{OK: true, Epoch: g.Epoch}
}

func (e entry) nextEpoch(g Group) Epoch {
	return Epoch{Inc: max(e.Cluster.Incarnation, g.Epoch.Inc), N: g.Epoch.N + 1}
}

// checkPair judges a normalised pair: a node counted twice would be two votes. least is how many a strict group asks for.
func (e entry) checkPair(g Group, p Pair, holder NodeID, least int) Result {
	waits := g.Holds() && p.K >= least
	if p.K < 0 || (p.K > len(p.S) && !waits) || (p.K == 0 && len(p.S) > 0) {
		return refuse("group %d: %d of %d synchronous standbys is not a set that can confirm", g.ID, p.K, len(p.S))
	}
	switch {
	case g.Mode == Off && p.K > 0:
		return refuse("group %d replicates asynchronously: it has no synchronous set", g.ID)
	case g.Holds() && p.K < least:
		return refuse("group %d is strict: %d standbys confirm every commit, not %d", g.ID, least, p.K)
	}
	for _, id := range p.S {
		n, ok := e.Nodes[id]
		if !ok || n.Group != g.ID || id == holder {
			return refuse("group %d: %s cannot be in the synchronous set of %s", g.ID, e.Name(id), e.Name(holder))
		}
	}
	return done
}

func addPair(pairs []Pair, p Pair) []Pair {
	out := slices.DeleteFunc(slices.Clone(pairs), p.Equal)
	return append(out, p)
}

// release gives a lease back. A holder that stopped in good order says where.
func (e entry) release(c Release) Result {
	g := e.Groups[c.Group]
	last, _ := g.LastGrant()
	var end *End
	if c.LSN != 0 && last.Epoch == c.Epoch && last.Timeline == c.Timeline && !g.Sync.Unknown {
		end = &End{Epoch: c.Epoch, Timeline: c.Timeline, LSN: c.LSN, Pairs: slices.Clone(g.Sync.Pairs)}
		if g.Ended != nil {
			end.Pairs = append(slices.Clone(g.Ended.Pairs), end.Pairs...)
		}
	}
	return e.end(c.Group, c.Epoch, "released", c.Reason, end)
}

// end frees a lease: released by its holder or expired by the leader.
func (e entry) end(id GroupID, epoch Epoch, kind, why string, end *End) Result {
	g := e.Groups[id]
	if !g.Held() || g.Lease.Epoch != epoch {
		return refuse("group %d: epoch %s does not hold the lease", id, epoch)
	}
	holder := g.Lease.Holder
	g.Lease = Lease{}
	if end != nil {
		g.Ended = end
	}
	e.note(id, History{Kind: kind, Node: holder, Epoch: epoch, Text: fmt.Sprintf("%s is primary no more: %s", e.Name(holder), why)})
	switch {
	case end != nil && g.Op.Demoting(epoch):
		op := *g.Op
		op.Phase, g.Op = Promote, &op
	case g.Op.Pausing():
		e.over(&g, false, fmt.Sprintf("%s lost the lease in phase %s: %s", e.Name(holder), g.Op.Phase, why))
	}
	e.Groups[id] = g
	return done
}

func (e entry) revoke(c Revoke) Result {
	g := e.Groups[c.Group]
	if !g.Held() || g.Lease.Epoch != c.Epoch {
		return refuse("group %d: epoch %s does not hold the lease", c.Group, c.Epoch)
	}
	switch {
	case c.Early && (g.Mode == Off || g.NoEarly):
		return refuse("group %d fails over at the end of a lease only", c.Group)
	case c.Early && g.Lease.Revoked && !g.Lease.Early:
		g.Lease.Early = true
		e.Groups[c.Group] = g
	}
	if !g.Lease.Revoked {
		g.Lease.Revoked, g.Lease.Early = true, c.Early
		if c.Sick {
			g.SickMoved = e.at
		}
		if g.Op.Pausing() {
			e.over(&g, false, "the lease was revoked: "+c.Reason)
		}
		e.Groups[c.Group] = g
		e.note(c.Group, History{Kind: "revoked", Node: g.Lease.Holder, Epoch: c.Epoch, Text: c.Reason})
	}
	return done
}

func (e entry) promoted(c Promoted) Result {
	g := e.Groups[c.Group]
	last, ok := g.LastGrant()
	switch {
	case !ok || last.Epoch != c.Epoch || c.Epoch.IsZero():
		return refuse("group %d: epoch %s is not the newest grant", c.Group, c.Epoch)
	case c.Timeline == 0:
		return refuse("group %d: no timeline given", c.Group)
	case last.Timeline == c.Timeline:
		return done
	case last.Timeline != 0:
		return refuse("group %d: epoch %s made timeline %d, not %d", c.Group, c.Epoch, last.Timeline, c.Timeline)
	}
	g.Grants = slices.Clone(g.Grants)
	last.Timeline, last.Parent, last.Fork = c.Timeline, c.Parent, c.Fork
	g.Grants[len(g.Grants)-1] = last
	e.Groups[c.Group] = g
	e.note(c.Group, History{
		Kind: "promoted", Node: last.Holder, Epoch: c.Epoch, Timeline: c.Timeline, LSN: c.Fork,
		Text: fmt.Sprintf("%s left timeline %d at %s for timeline %d", e.Name(last.Holder), c.Parent, c.Fork, c.Timeline),
	})
	return done
}

// holderMayChange is the guard of every change of a synchronous set: only the holder, and not once it is revoked.
func (e entry) holderMayChange(g Group, epoch Epoch) Result {
	switch {
	case !g.Held() || g.Lease.Epoch != epoch:
		return refuse("group %d: epoch %s does not hold the lease", g.ID, epoch)
	case g.Lease.Revoked:
		return refuse("group %d: epoch %s is revoked", g.ID, epoch)
	}
	return done
}

func (e entry) syncPropose(c SyncPropose) Result {
	g := e.Groups[c.Group]
	if res := e.holderMayChange(g, c.Epoch); !res.OK {
		return res
	}
	c.Pair = NewPair(c.Pair.K, c.Pair.S...)
	least := g.Confirmers()
	if e.Cluster.Gate >= 2 { // one that covers the others asks for no less than one of them
		for _, p := range g.Sync.Pairs {
			if p.K > 0 {
				least = min(least, p.K)
			}
		}
	}
	if res := e.checkPair(g, c.Pair, g.Lease.Holder, least); !res.OK {
		return res
	}
	target := g.Sync.Target()
	switch {
	case target.Equal(c.Pair):
		return done
	case e.Cluster.Gate >= 2: // older binaries know the other rule
		if p := g.Through(c.Pair, e.mayConfirm(g)); !p.Equal(c.Pair) {
			return refuse("group %d: the way to %d of %d leads through %d of %d, which covers what may be acknowledged meanwhile", c.Group, c.Pair.K, len(c.Pair.S), p.K, len(p.S))
		}
	case distance(target, c.Pair) > 1 && c.Pair.K > 0: // all may go at once
		return refuse("group %d: the synchronous set changes by one member at a time", c.Group)
	}
	g.Sync.Pairs = addPair(g.Sync.Pairs, c.Pair)
	e.Groups[c.Group] = g
	e.note(c.Group, History{Kind: "sync", Node: g.Lease.Holder, Epoch: c.Epoch, Text: c.Reason})
	return done
}

// mayConfirm says who can be in a pair.
func (e entry) mayConfirm(g Group) func(NodeID) bool {
	return func(id NodeID) bool {
		n, ok := e.Nodes[id]
		return ok && n.Group == g.ID && id != g.Lease.Holder
	}
}

func distance(a, b Pair) (n int) {
	for _, x := range a.S {
		if !b.Has(x) {
			n++
		}
	}
	for _, x := range b.S {
		if !a.Has(x) {
			n++
		}
	}
	return n
}

func (e entry) syncConfirm(c SyncConfirm) Result {
	g := e.Groups[c.Group]
	if res := e.holderMayChange(g, c.Epoch); !res.OK {
		return res
	}
	last, _ := g.LastGrant()
	switch {
	case !g.Sync.Target().Equal(NewPair(c.Pair.K, c.Pair.S...)):
		return refuse("group %d: the synchronous set to confirm is another one", c.Group)
	case c.Pair.K > len(c.Pair.S):
		return refuse("group %d: nothing can be confirmed by %d of %d standbys", c.Group, c.Pair.K, len(c.Pair.S))
	case last.Epoch != c.Epoch || last.Timeline == 0:
		return refuse("group %d: epoch %s has not recorded its promotion", c.Group, c.Epoch)
	}
	first := g.Sync.Confirmed != c.Epoch
	g.Sync = Sync{Pairs: []Pair{g.Sync.Target()}, Confirmed: c.Epoch}
	g.Ended = nil
	if first && !g.Failsafe { // it was promoted, so that every word given to a former primary is over
		g.Eligible = nil
	}
	if g.Op.promotes(g.Lease.Holder) {
		op := *g.Op
		op.Phase, g.Op = Resume, &op
	}
	e.Groups[c.Group] = g
	if first {
		e.note(c.Group, History{Kind: "opened", Node: g.Lease.Holder, Epoch: c.Epoch, Timeline: last.Timeline, Text: fmt.Sprintf("%s is primary: first synchronous commit done, clients may enter", e.Name(g.Lease.Holder))})
	}
	return done
}
