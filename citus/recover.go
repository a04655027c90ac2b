package citus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

// errUnproven says that a row did not lead to a primary all the time; the recovery is taken back.
var errUnproven = errors.New("a primary row may lead to a server in recovery")

// recoverPrepared lets a node finish the transactions it left prepared elsewhere. Citus takes what a server does not list for
// finished and forgets the commit, so a server that was in recovery for a moment would cost acknowledged rows. Records are
// forgotten only by the commit: it is given after a second look has found every primary on the timeline of the first.
func (p *Pool) recoverPrepared(ctx context.Context, want Wanted, g fsm.GroupID, seen map[fsm.GroupID]Actual) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	s, err := p.session(ctx, want.places()[g])
	if err != nil {
		return 0, fmt.Errorf("recover prepared transactions of group %d: %w", g, err)
	}
	n := 0
	err = p.write(ctx, s, false, func(tx pgx.Tx) error {
		a, err := Observe(ctx, tx)
		if err != nil {
			return err
		}
		if !proven(want, a.Rows, seen) {
			return errUnproven
		}
		if p.beforeRecovery != nil {
			p.beforeRecovery()
		}
		if err := tx.QueryRow(ctx, "SELECT recover_prepared_transactions()").Scan(&n); err != nil {
			return err
		}
		again, _ := p.look(ctx, want, func(ctx context.Context, of fsm.GroupID, at place) (Actual, error) {
			if of == g {
				return Observe(ctx, tx)
			}
			return p.observe(ctx, at)
		})
		if !proven(want, a.Rows, again) {
			return errUnproven
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("recover prepared transactions of group %d: %w", g, err)
	}
	return n, nil
}

// look asks all primaries at once. A group that does not answer is missing in the result and named in the errors.
func (p *Pool) look(ctx context.Context, want Wanted, ask func(context.Context, fsm.GroupID, place) (Actual, error),
) (map[fsm.GroupID]Actual, map[fsm.GroupID]error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen, failed := map[fsm.GroupID]Actual{}, map[fsm.GroupID]error{}
	for g, at := range want.places() {
		wg.Go(func() {
			a, err := ask(ctx, g, at)
			const noDatabase = "3D000"
			if sqlState(err) == noDatabase {
				a, err = Actual{Missing: true}, nil
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[g] = fmt.Errorf("observe group %d at %s: %w", g, at.addr, err)
				return
			}
			seen[g] = a
		})
	}
	wg.Wait()
	return seen, failed
}

// observe asks one primary through its session.
func (p *Pool) observe(ctx context.Context, at place) (Actual, error) {
	s, err := p.session(ctx, at)
	if err != nil {
		return Actual{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.times(observeTimeout))
	defer cancel()
	a, err := Observe(ctx, s)
	a.Ready = a.Ready && a.authinfo == hashOf(p.authinfo())
	return a, err
}

// recoveryDue reports whether some primary is another than at the last recovery, or that was long ago.
func (p *Pool) recoveryDue(want Wanted) bool {
	last := p.recovery[want.Database]
	return last.of != fingerprint(want) || time.Since(last.at) >= p.cfg.RecoverEvery
}

func (p *Pool) noteRecovery(want Wanted) {
	p.recovery[want.Database] = recovered{at: time.Now(), of: fingerprint(want)}
}

// fingerprint tells one set of primaries from another.
func fingerprint(want Wanted) string {
	var b strings.Builder
	for _, g := range want.groups() {
		fmt.Fprintf(&b, "%d %s %d;", g, want.Primaries[g].Addr, want.Primaries[g].Timeline)
	}
	return b.String()
}
