package lease

import (
	"time"

	"matriarch/fsm"
)

// Stamp is a reading of the two clocks of one host, each from its own arbitrary origin.
type Stamp struct {
	Raw  time.Duration `json:"raw"`  // CLOCK_MONOTONIC_RAW: never slewed
	Boot time.Duration `json:"boot"` // CLOCK_BOOTTIME: goes on while the host is suspended
}

// Add moves both readings.
func (s Stamp) Add(d time.Duration) Stamp { return Stamp{s.Raw + d, s.Boot + d} }

// later is the later reading of each clock.
func (s Stamp) later(o Stamp) Stamp { return Stamp{max(s.Raw, o.Raw), max(s.Boot, o.Boot)} }

// Clock reads both clocks of this host.
type Clock func() Stamp

// Margin is the time from the end of a lease to the last effect of a killed PostgreSQL: timer overshoot, kill, scheduling.
const Margin = 500 * time.Millisecond

// Drift bounds how far the rates of two hosts' raw clocks differ from real time, in parts per thousand.
const Drift = 1

// Valid is how long after sending a keepalive an answered lease may be used: ttl - drift - margin.
func Valid(ttl time.Duration) time.Duration {
	return ttl*(1000-Drift)/(1000+Drift) - Margin
}

// Interval is the grid of keepalives for a ttl.
func Interval(ttl time.Duration) time.Duration { return ttl / 10 }

// Holder keeps the deadline of one node's lease. The zero value holds nothing. It is not safe for concurrent use.
type Holder struct {
	instance string
	epoch    fsm.Epoch
	until    Stamp
	leased   Stamp // as far as answered keepalives reach; the rest of until rests on the members' words
	valid    bool
}

// NewHolder holds nothing yet, for the given sentinel instance.
func NewHolder(instance string) *Holder { return &Holder{instance: instance} }

// Answered takes the answer to a keepalive sent at sent: the leader's state had this epoch held by this instance, unrevoked.
// Answers may arrive late and out of order: a deadline only moves later. It reports whether anything moved.
func (h *Holder) Answered(sent Stamp, instance string, epoch fsm.Epoch, ttl time.Duration) bool {
	if instance != h.instance || epoch.Less(h.epoch) {
		return false
	}
	until := sent.Add(Valid(ttl))
	if epoch != h.epoch || !h.valid {
		h.epoch, h.until, h.leased, h.valid = epoch, until, until, true
		return true
	}
	h.leased = h.leased.later(until)
	return h.move(until)
}

// Extend takes the words of all members, asked for at asked, that none of them becomes primary for as long as word. It needs a
// deadline that is still to come: a gap could hold another primary. It reports whether anything moved.
func (h *Holder) Extend(asked, now Stamp, epoch fsm.Epoch, word time.Duration) bool {
	return h.Left(epoch, now) > 0 && h.move(asked.Add(Valid(word)))
}

func (h *Holder) move(until Stamp) bool {
	if until.Raw <= h.until.Raw && until.Boot <= h.until.Boot {
		return false
	}
	h.until = h.until.later(until)
	return true
}

// Leased reports whether the deadline of the epoch rests on answered keepalives alone. What was remembered over a restart may not.
func (h *Holder) Leased(epoch fsm.Epoch) bool {
	return h.valid && epoch == h.epoch && h.leased.Raw >= h.until.Raw && h.leased.Boot >= h.until.Boot
}

// Restore takes over what the sentinel remembers of this very instance, after a restart of the agent.
func (h *Holder) Restore(epoch fsm.Epoch, until Stamp) {
	h.epoch, h.until, h.leased, h.valid = epoch, until, Stamp{}, true
}

// Left is how long the epoch's lease is still valid, by the earlier of the two clocks; 0 or less means not at all.
func (h *Holder) Left(epoch fsm.Epoch, now Stamp) time.Duration {
	if !h.valid || epoch != h.epoch {
		return 0
	}
	return min(h.until.Raw-now.Raw, h.until.Boot-now.Boot)
}

// Until is the deadline of the newest epoch answered.
func (h *Holder) Until() (fsm.Epoch, Stamp, bool) { return h.epoch, h.until, h.valid }

// Lessor keeps the deadlines of all leases on the Raft leader. It belongs to the goroutine that proposes ticks, Grants,
// Releases, Revokes and Expires. A Lessor serves one term; a new leader makes a new one.
type Lessor struct {
	deadlines map[fsm.GroupID]deadline
	ready     Stamp
}

type deadline struct {
	epoch fsm.Epoch
	at    Stamp // expires when both clocks are past it
	heard Stamp
}

// NewLessor begins a term: after the Barrier, every held lease gets a full ttl from now.
func NewLessor(now Stamp, s *fsm.State) *Lessor {
	l := &Lessor{deadlines: map[fsm.GroupID]deadline{}, ready: now}
	l.Applied(now, s)
	return l
}

// Applied follows the state: a lease not seen before gets its first deadline, now + ttl.
func (l *Lessor) Applied(now Stamp, s *fsm.State) {
	for id, g := range s.Groups {
		d, known := l.deadlines[id]
		switch {
		case !g.Held():
			delete(l.deadlines, id)
		case !known || d.epoch != g.Lease.Epoch:
			l.deadlines[id] = deadline{epoch: g.Lease.Epoch, at: now.Add(g.Lease.TTL), heard: now}
		}
	}
	for id := range l.deadlines {
		if _, ok := s.Groups[id]; !ok {
			delete(l.deadlines, id)
		}
	}
}

// Enter moves a lease's deadline as its keepalive enters a tick. Too late a deadline is always safe, so the move does not
// wait for the tick's outcome. A revoked lease does not move.
func (l *Lessor) Enter(received Stamp, g fsm.Group, epoch fsm.Epoch, instance string) {
	d, ok := l.deadlines[g.ID]
	if !ok || d.epoch != epoch || g.Lease.Epoch != epoch || g.Lease.Instance != instance || g.Lease.Revoked {
		return
	}
	to := received.Add(g.Lease.TTL)
	d.at = Stamp{max(d.at.Raw, to.Raw), max(d.at.Boot, to.Boot)}
	d.heard = received
	l.deadlines[g.ID] = d
}

// Expired lists the leases whose deadline both clocks have passed.
func (l *Lessor) Expired(now Stamp) []fsm.Expire {
	var out []fsm.Expire
	for id, d := range l.deadlines {
		if now.Raw > d.at.Raw && now.Boot > d.at.Boot {
			out = append(out, fsm.Expire{Group: id, Epoch: d.epoch})
		}
	}
	return out
}

// Next is how long until a deadline may have passed; ok is false when nothing is held.
func (l *Lessor) Next(now Stamp) (wait time.Duration, ok bool) {
	for _, d := range l.deadlines {
		left := max(d.at.Raw-now.Raw, d.at.Boot-now.Boot) + time.Millisecond
		if !ok || left < wait {
			wait, ok = left, true
		}
	}
	return max(wait, 0), ok
}

// Missing is how long a lease's keepalives have been missing: from the last one, or from the beginning of this term.
func (l *Lessor) Missing(g fsm.GroupID, now Stamp) time.Duration {
	d, ok := l.deadlines[g]
	if !ok {
		return 0
	}
	return now.Raw - max(d.heard.Raw, l.ready.Raw)
}

// Answer tells whether a keepalive may be answered with yes by the state right after its own tick.
func Answer(s *fsm.State, g fsm.GroupID, node fsm.NodeID, instance string, epoch fsm.Epoch) (fsm.Lease, bool) {
	l := s.Groups[g].Lease
	return l, l.Holder == node && l.Instance == instance && l.Epoch == epoch && !l.Revoked
}

// Word is a member's word not to become primary, given to the holder of a lease. It ends on the later of the giver's clocks. The
// zero value binds nobody. It is not safe for concurrent use.
type Word struct {
	until Stamp
	given bool
}

// Give binds until length after received.
func (w *Word) Give(received Stamp, length time.Duration) {
	w.until, w.given = w.until.later(received.Add(length)), true
}

// Left is for how long the word still binds; 0 or less: it does not.
func (w *Word) Left(now Stamp) time.Duration {
	if !w.given {
		return 0
	}
	return max(w.until.Raw-now.Raw, w.until.Boot-now.Boot)
}
