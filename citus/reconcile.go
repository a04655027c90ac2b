package citus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/fsm"
)

// memberTimeout bounds one step that makes Citus speak to all nodes.
const memberTimeout = 15 * time.Second

// Report is the outcome of one round for one database.
type Report struct {
	Database    string
	Synced      bool     // the rows of every group with a primary are right everywhere and nothing was left to do
	Differences []string // found in this round, put right or tried
	Problems    []string // found in this round, for an operator
	Recovered   int      // prepared transactions finished
	Rows        []RowStatus
}

// RowStatus is one wanted row, for people.
type RowStatus struct {
	Group     fsm.GroupID `json:"group"`
	Role      string      `json:"role"`              // primary or secondary
	NodeID    int         `json:"node_id,omitempty"` // 0: no row seen
	Wanted    string      `json:"wanted"`            // host:port, or none
	Actual    string      `json:"actual"`            // on the coordinator at this round's look, or none
	Synced    bool        `json:"synced"`            // the copy on that group's primary, as the coordinator says
	Answered  bool        `json:"answered"`          // the group's primary could be observed
	Extension string      `json:"extension,omitempty"`
}

// Reconcile looks once at every primary of a database and puts right what differs. It returns what it found in any case; the
// error joins what could not be reached or done, and holds ErrDeposed when a higher term is at work. It is ErrPaused, and
// nothing was looked at, while a Pause takes or holds its locks. The caller repeats it, with want read afresh.
func (p *Pool) Reconcile(ctx context.Context, term uint64, want Wanted) (Report, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pausing.Load() > 0 {
		return Report{Database: want.Database}, ErrPaused
	}
	p.serve(term)
	r := round{Pool: p, want: want, report: Report{Database: want.Database}, silent: map[fsm.GroupID]error{}}
	r.want.Recover = want.Recover || p.recoveryDue(want)
	if now := fingerprint(want); p.told[want.Database] != now {
		p.told[want.Database] = now
		r.tell(ctx)
	}
	r.meet(ctx)
	if c, ok := r.seen[0]; ok {
		r.want = p.hold(r.want, c.Rows, time.Now())
	}
	steps := Diff(r.want, r.seen)
	r.report.Problems = Problems(r.want, r.seen)
	r.apply(ctx, steps)
	r.conclude(steps)
	return r.report, errors.Join(r.errs...)
}

// round is one call of Reconcile.
type round struct {
	*Pool
	want    Wanted
	seen    map[fsm.GroupID]Actual
	silent  map[fsm.GroupID]error // who did not answer in time when there was something to tell
	settled []Step                // done before the look
	report  Report
	mu      sync.Mutex
	errs    []error
}

func (r *round) fail(err error) {
	if err != nil {
		r.mu.Lock()
		r.errs = append(r.errs, err)
		r.mu.Unlock()
	}
}

// tell is the short way for a primary that moved: each server with which there is a session already gets the address at once, by
// its own rows. Clients wait for that, so it waits neither for the way to the new primary, which is opened meanwhile, nor for
// one that is silent. What else there is to do the look after it finds.
func (r *round) tell(ctx context.Context) {
	var wg sync.WaitGroup
	for g, at := range r.want.places() {
		way := func() error { _, err := r.session(ctx, at); return err }
		if s := r.open(at); s != nil && !s.fresh {
			way = func() error { return r.tellOne(ctx, g, at) }
		} else if g == 0 { // a new coordinator's first transaction settles it
			continue
		}
		wg.Go(func() {
			if err := way(); errors.Is(err, context.DeadlineExceeded) || pgconn.Timeout(err) {
				r.mu.Lock()
				r.silent[g] = err
				r.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func (r *round) tellOne(ctx context.Context, g fsm.GroupID, at place) error {
	a, err := r.observe(ctx, at)
	if err != nil {
		return err
	}
	want := r.want
	if g == 0 {
		want = r.hold(want, a.Rows, time.Now())
	}
	steps := addresses(Diff(want, map[fsm.GroupID]Actual{g: a}))
	if len(steps) == 0 {
		return nil
	}
	if err := r.transact(ctx, g, false, steps...); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settled = append(r.settled, steps...)
	return nil
}

// meet looks at everybody at once. A coordinator that is new to the pool is settled on the way.
func (r *round) meet(ctx context.Context) {
	r.keepOnly(r.want)
	var failed map[fsm.GroupID]error
	r.seen, failed = r.look(ctx, r.want, func(ctx context.Context, g fsm.GroupID, at place) (Actual, error) {
		if err := r.silent[g]; err != nil {
			return Actual{}, err
		}
		if g == 0 {
			if err := r.meetCoordinator(ctx, at); err != nil {
				return Actual{}, err
			}
		}
		return r.observe(ctx, at)
	})
	for _, g := range r.want.groups() {
		r.fail(failed[g])
	}
}

func (r *round) meetCoordinator(ctx context.Context, at place) error {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	s, err := r.session(ctx, at)
	if err != nil || !s.fresh {
		return err
	}
	settled, err := r.settle(ctx, s, r.want)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settled = append(r.settled, settled...)
	return err
}

// apply runs the steps: extensions and rows on all nodes at once, then members and recovery one by one.
func (r *round) apply(ctx context.Context, steps []Step) {
	rows := map[fsm.GroupID][]Step{}
	var members, recoveries []Step
	var wg sync.WaitGroup
	for _, s := range steps {
		switch s := s.(type) {
		case CreateExtension:
			wg.Go(func() { r.fail(r.create(ctx, s)) })
		case UpdateNode, UpdateRow, FixRow, CopyRow, DropRow, SetPool, DropPool:
			rows[s.On()] = append(rows[s.On()], s)
		case RecoverPrepared:
			recoveries = append(recoveries, s)
		default:
			members = append(members, s)
		}
	}
	for g, steps := range rows {
		wg.Go(func() { r.fail(r.transact(ctx, g, false, steps...)) })
	}
	wg.Wait()
	for _, s := range members {
		r.fail(r.transact(ctx, s.On(), true, s))
	}
	recovered := 0
	for _, s := range recoveries {
		n, err := r.recoverPrepared(ctx, r.want, s.On(), r.seen)
		r.fail(err)
		r.report.Recovered += n
		if err == nil {
			recovered++
		}
	}
	if recovered > 0 && recovered == len(r.want.Primaries) {
		r.noteRecovery(r.want)
	}
}

func (r *round) create(ctx context.Context, s CreateExtension) error {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	return r.ensureDatabase(ctx, r.want.Primaries[s.Group].Addr, r.want.Database)
}

func (r *round) transact(ctx context.Context, g fsm.GroupID, durable bool, steps ...Step) error {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	s, err := r.session(ctx, r.want.places()[g])
	if err != nil {
		return fmt.Errorf("write metadata on group %d: %w", g, err)
	}
	if err := r.write(ctx, s, durable, func(tx pgx.Tx) error { return run(ctx, tx, true, steps...) }); err != nil {
		return fmt.Errorf("write metadata on group %d: %w", g, err)
	}
	return nil
}

// conclude fills the report.
func (r *round) conclude(steps []Step) {
	open := false
	for _, s := range slices.Concat(r.settled, steps) {
		if _, ok := s.(RecoverPrepared); !ok {
			r.report.Differences = append(r.report.Differences, s.String())
			open = true
		}
	}
	r.report.Synced = !open && len(r.errs) == 0 && len(r.report.Problems) == 0
	for _, g := range r.want.groups() {
		if r.want.gone(g) {
			continue
		}
		a, answered := r.seen[g]
		row, has := r.seen[0].rowOf(g)
		st := RowStatus{
			Group: g, Role: rolePrimary, NodeID: row.NodeID, Wanted: r.want.Primaries[g].Addr.String(), Actual: row.Addr.String(),
			Synced: row.Synced, Answered: answered, Extension: a.Extension,
		}
		r.report.Rows = append(r.report.Rows, st)
		if !r.want.Primaries[g].Addr.IsZero() && (!has || !row.Synced || !answered) {
			r.report.Synced = false
		}
		r.secondaries(g)
	}
}

// secondaries lists the standbys of a group that should have a row, or keep the one they have.
func (r *round) secondaries(g fsm.GroupID) {
	for _, s := range r.want.Secondaries[g] {
		row, has := r.seen[0].rowAt(s.Addr)
		if s.Standing == Away || s.Standing == Doubtful && !has {
			continue
		}
		r.report.Rows = append(r.report.Rows, RowStatus{
			Group: g, Role: roleSecondary, NodeID: row.NodeID, Wanted: s.Addr.String(), Actual: row.Addr.String(), Synced: has, Answered: has,
		})
	}
}
