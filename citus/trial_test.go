package citus

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"matriarch/fsm"
)

// trial is a formation under one conductor.
type trial struct {
	t       *testing.T
	pool    *Pool
	term    uint64
	servers map[fsm.GroupID]*server

	standbys map[fsm.GroupID][]Secondary // nil: none is registered
	poolPort int
	gone     []fsm.GroupID
	extra    []string // further databases
}

// patience is for machines that stand still at times. Where a server is silent on purpose, limits are those of the product.
const patience = 15

// newTrial starts a coordinator and workers and has them registered.
func newTrial(t *testing.T, workers int, settings ...string) *trial {
	t.Helper()
	f := &trial{t: t, term: 1, servers: map[fsm.GroupID]*server{}, pool: NewPool(Config{User: superuser, Password: password})}
	t.Cleanup(func() { f.pool.Close() })
	f.pool.patience = patience
	for g := range workers + 1 {
		f.servers[fsm.GroupID(g)] = newServer(t)
	}
	var wg sync.WaitGroup
	for _, s := range f.servers {
		wg.Go(func() { s.create(settings...) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	f.settle()
	return f
}

func (f *trial) want() Wanted {
	w := Wanted{Database: appDB, Primaries: map[fsm.GroupID]Primary{}, Secondaries: f.standbys, PoolPort: f.poolPort, Gone: f.gone}
	for g, s := range f.servers {
		w.Primaries[g] = Primary{}
		if s != nil {
			w.Primaries[g] = Primary{Addr: s.addr, Timeline: s.timeline()}
		}
	}
	return w
}

// wants is what is wanted of every database.
func (f *trial) wants() []Wanted {
	w := f.want()
	out := []Wanted{w}
	for _, db := range f.extra {
		w.Database = db
		out = append(out, w)
	}
	return out
}

func (f *trial) round() (Report, error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	all := Report{Synced: true}
	var errs []error
	for _, w := range f.wants() {
		rep, err := f.pool.Reconcile(ctx, f.term, w)
		errs = append(errs, err)
		all.Synced = all.Synced && rep.Synced
		all.Differences = append(all.Differences, rep.Differences...)
		all.Problems = append(all.Problems, rep.Problems...)
	}
	return all, errors.Join(errs...)
}

// settle repeats rounds until nothing is left to do and returns what was found on the way.
func (f *trial) settle() []string {
	f.t.Helper()
	var found []string
	var last Report
	var err error
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); {
		last, err = f.round()
		found = append(found, last.Differences...)
		if last.Synced {
			return found
		}
		<-time.After(50 * time.Millisecond)
	}
	f.t.Fatalf("not in order after 40 s: %+v, %v", last, err)
	return nil
}

// agreed checks that every copy has one row for each group, at its primary.
func (f *trial) agreed() map[int]string {
	f.t.Helper()
	want := map[string]bool{}
	for _, s := range f.servers {
		want[s.addr.String()] = true
	}
	for _, list := range f.standbys {
		for _, s := range list {
			if s.Standing == Serving {
				want[s.Addr.String()] = true
			}
		}
	}
	var first map[int]string
	for g, s := range f.servers {
		rows := s.rows()
		for _, a := range rows {
			if !want[a] {
				f.t.Errorf("copy of group %d names %s", g, a)
			}
		}
		if first == nil {
			first = rows
		}
		if len(rows) != len(want) || !maps.Equal(rows, first) {
			f.t.Errorf("copy of group %d is %v, another is %v", g, rows, first)
		}
	}
	return first
}
