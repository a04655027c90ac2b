package fence

import "time"

// SoftStop is how long before the deadline the postmaster gets SIGQUIT, so that it usually ends in order before it is killed.
const SoftStop = time.Second

// guard knows what the server's right to write rests on. It is plain data and reads no clock.
type guard struct {
	instance string
	latest   Deadline // newest accepted, whatever epoch
	bound    Deadline // that of the epoch the running server was promoted under, or adopted with; zero: none
	promoted Epoch    // highest epoch that a promotion was ordered for
	primary  bool     // standby.signal is missing; stays until the server is gone
	grace    *Stamp   // an adopted primary may wait until then for its first deadline
}

// accept takes a deadline in, if it is for this sentinel and not older than what is known.
func (g *guard) accept(d Deadline, now Stamp) error {
	switch {
	case d.Instance != g.instance:
		return refuse(ErrInstance, "the deadline is for sentinel instance %s, this is %s: ask for a new grant", d.Instance, g.instance)
	case d.Epoch.IsZero():
		return refuse(ErrInvalid, "the deadline has no epoch")
	case d.Epoch.Less(g.latest.Epoch):
		return refuse(ErrStale, "the deadline is of epoch %s, epoch %s is known", d.Epoch, g.latest.Epoch)
	case d.Epoch == g.latest.Epoch && (d.Raw < g.latest.Raw || d.Boot < g.latest.Boot):
		return refuse(ErrStale, "the deadline of epoch %s is earlier than the one known", d.Epoch)
	}
	g.latest = d
	switch {
	case g.bound.Epoch == d.Epoch:
		g.bound = d
	case g.grace != nil && g.grace.Until(now) > 0 && !d.Passed(now) && g.promoted.Less(d.Epoch):
		g.bound, g.grace, g.promoted = d, nil, d.Epoch
	}
	return nil
}

// bind ties the running standby to epoch e, which makes it a server that must end with e. again: it was tied to e before.
func (g *guard) bind(e Epoch, now Stamp) (again bool, err error) {
	switch {
	case e.IsZero():
		return false, refuse(ErrInvalid, "promote names no epoch")
	case g.bound.Epoch == e:
		return true, nil
	case !g.bound.Epoch.IsZero() || g.primary:
		return false, refuse(ErrEpoch, "the server runs under epoch %s: stop it, then start and promote it under %s", g.bound.Epoch, e)
	case g.latest.Epoch != e:
		return false, refuse(ErrDeadline, "the current deadline is of epoch %s, not %s: send the deadline first", g.latest.Epoch, e)
	case !g.promoted.Less(e):
		return false, refuse(ErrEpoch, "epoch %s has promoted before: ask for a new grant", e)
	case g.latest.Left(now) <= SoftStop:
		return false, refuse(ErrDeadline, "the lease of epoch %s has %v left: renew it first", e, g.latest.Left(now))
	}
	g.bound, g.promoted = g.latest, e
	return false, nil
}

// renounce makes sure that e is never promoted here: whoever asks for that gives its lease back.
func (g *guard) renounce(e Epoch) error {
	if g.bound.Epoch == e && !e.IsZero() {
		return refuse(ErrEpoch, "the server runs under epoch %s: stop it first", e)
	}
	if g.promoted.Less(e) {
		g.promoted = e
	}
	return nil
}

// adopt takes in a server that runs already, primary or standby, with at most grace to wait for a deadline.
func (g *guard) adopt(primary bool, grace time.Duration, now Stamp) error {
	g.primary = primary
	switch {
	case !primary:
	case !g.latest.Epoch.IsZero() && !g.latest.Passed(now) && g.promoted.Less(g.latest.Epoch):
		g.bound, g.promoted = g.latest, g.latest.Epoch
	case grace > 0:
		end := now.Add(grace)
		g.grace = &end
	default:
		g.primary = false
		return refuse(ErrDeadline, "the server to adopt is a primary and there is neither a deadline nor a grace")
	}
	return nil
}

// release forgets the server, since it is gone. Epochs it used stay used.
func (g *guard) release() { g.bound, g.primary, g.grace = Deadline{}, false, nil }

// end returns when the server must be gone; armed is false when it is a plain standby, which has no deadline.
func (g *guard) end(now Stamp) (end Stamp, armed bool) {
	switch {
	case !g.bound.Epoch.IsZero():
		return g.bound.Stamp(), true
	case g.grace != nil:
		return g.grace.Add(SoftStop), true // the grace ends where the fence begins
	case g.primary:
		return now, true
	}
	return Stamp{}, false
}

// shown is the deadline for Status: the one that binds the server, else the newest.
func (g *guard) shown() *Deadline {
	d := g.latest
	if !g.bound.Epoch.IsZero() {
		d = g.bound
	}
	if d.Epoch.IsZero() {
		return nil
	}
	return &d
}
