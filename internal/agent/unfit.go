package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// ErrUnfit means that this host must not have a primary: a required watchdog is missing.
var ErrUnfit = errors.New("this host must not have a primary")

// ErrSpent means that the sentinel will never promote under this epoch (any more): an agent before this one made it refuse.
var ErrSpent = errors.New("this epoch is used up")

// unfitFor is how long a node whose promotion was refused leaves the lease to others; when nobody else takes it, it tries again.
const unfitFor = 30 * time.Second

// unfitBox remembers why the last promotion was refused.
type unfitBox struct {
	mu    sync.Mutex
	why   string
	until time.Time
}

func (b *unfitBox) set(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.why, b.until = why, time.Now().Add(unfitFor)
}

func (b *unfitBox) get() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Now().After(b.until) {
		return ""
	}
	return b.why
}

// unfitNow says why this node must not become primary now, or "".
func (a *Agent) unfitNow() string {
	if why := a.sentinel.get().Unfit; why != "" {
		return why
	}
	return a.unfit.get()
}

// giveBack returns a lease that nothing was promoted under: another node may be luckier. The sentinel is made to refuse the epoch first, so that
// no later agent with an older copy of the state can promote under it.
func (a *Agent) giveBack(ctx context.Context, r Roster, e fsm.Epoch, why error) error {
	if ctx.Err() != nil {
		return why
	}
	if err := a.cfg.Sentinel.Renounce(ctx, e); err != nil {
		return fmt.Errorf("%w; renounce epoch %s: %w", why, e, err)
	}
	if !errors.Is(why, ErrSpent) { // the next epoch may be this node's
		a.unfit.set(why.Error())
	}
	if err := a.release(ctx, r, e, why.Error()); err != nil {
		return fmt.Errorf("%w; %w", why, err)
	}
	a.cfg.Log.Error("lease given back, another node is to take it", "epoch", e.String(), "error", why)
	return errNotYet
}

// tellRole tells the hooks of a change of role. The first look after a start is none.
func (a *Agent) tellRole(v decide.View, rep fsm.Report) {
	role := rep.Role
	if role == "" || role == a.lastRole || rep.State == "promoting" {
		return
	}
	first := a.lastRole == ""
	a.lastRole = role
	if !first {
		a.cfg.Hooks.RoleChanged(a.roster(v.State), role, rep.Epoch)
	}
}
