package agent

import (
	"slices"
	"sync"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
)

// leaseBox guards the Holder: keepalives and words write it, the loop reads it.
type leaseBox struct {
	mu      sync.Mutex
	h       *lease.Holder
	of      string
	epoch   fsm.Epoch    // for which a keepalive was answered to this process
	index   uint64       // of the first such answer: whoever was a member before is in a state that new
	offered []fsm.NodeID // members taken in by this process: all must give their words
}

func (b *leaseBox) restore(instance string, e fsm.Epoch, until lease.Stamp) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.h, b.of = lease.NewHolder(instance), instance
	b.h.Restore(e, until)
}

func (b *leaseBox) answered(sent lease.Stamp, instance string, ans Answer) (lease.Stamp, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := ans.Lease
	if b.of != instance {
		b.h, b.of, b.epoch = lease.NewHolder(instance), instance, fsm.Epoch{}
	}
	moved := b.h.Answered(sent, l.Instance, l.Epoch, l.TTL)
	e, until, _ := b.h.Until()
	if l.Instance == instance && e == l.Epoch && b.epoch != e {
		b.epoch, b.index, b.offered = e, ans.Index, nil
	}
	return until, moved
}

func (b *leaseBox) left(instance string, e fsm.Epoch, now lease.Stamp) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.h == nil || b.of != instance {
		return 0
	}
	return b.h.Left(e, now)
}

// confirmed reports whether a keepalive of the epoch was answered to this process, and a state of this index is as new as the answer.
func (b *leaseBox) confirmed(instance string, e fsm.Epoch, index uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.confirmedLocked(instance, e) && index >= b.index
}

func (b *leaseBox) confirmedLocked(instance string, e fsm.Epoch) bool {
	return b.h != nil && b.of == instance && b.epoch == e && !e.IsZero()
}

// leased reports whether the lease is confirmed and no word prolongs it.
func (b *leaseBox) leased(instance string, e fsm.Epoch, index uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.confirmedLocked(instance, e) && index >= b.index && b.h.Leased(e)
}

// byWords reports whether words keep the lease, which is still valid.
func (b *leaseBox) byWords(instance string, e fsm.Epoch, now lease.Stamp) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.confirmedLocked(instance, e) && !b.h.Leased(e) && b.h.Left(e, now) > 0
}

// extend prolongs the lease by the words of those asked, which must be everybody taken in meanwhile.
func (b *leaseBox) extend(asked, now lease.Stamp, instance string, e fsm.Epoch, word time.Duration, of []fsm.NodeID) (lease.Stamp, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	missing := slices.ContainsFunc(b.offered, func(id fsm.NodeID) bool { return !slices.Contains(of, id) })
	if !b.confirmedLocked(instance, e) || missing || !b.h.Extend(asked, now, e, word) {
		return lease.Stamp{}, false
	}
	_, until, _ := b.h.Until()
	return until, true
}

// offer notes who is about to be taken in. It answers false while words prolong the lease, as they may be of fewer members.
func (b *leaseBox) offer(instance string, e fsm.Epoch, nodes []fsm.NodeID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.confirmedLocked(instance, e) || !b.h.Leased(e) {
		return false
	}
	b.offered = nodes
	return true
}
