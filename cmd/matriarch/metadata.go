package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"matriarch/citus"
	"matriarch/fsm"
	"matriarch/internal/conductor"
	"matriarch/pgmanager"
	"matriarch/pgmanager/pgconf"
)

// metadata keeps pg_dist_node right while this node leads; nil without Citus.
func (n *node) metadata(pg pgmanager.Config) conductor.Metadata {
	if !pg.Citus {
		return nil
	}
	n.citus = citus.NewPool(citus.Config{User: pg.Superuser, Secret: n.pg.Password, TLS: n.pg.TLSPaths(), Access: func() citus.Access {
		if !pg.TLS {
			return citus.Access{}
		}
		return citus.Access{Security: pgconf.Security(n.linkSecurity()), Pooled: n.consensus.State().Cluster.Settings.CitusPoolPort != 0}
	}})
	return &metadata{pool: n.citus, log: n.log}
}

// metadata implements conductor.Metadata. One round runs at a time.
type metadata struct {
	pool *citus.Pool
	log  *slog.Logger
	term uint64   // whose leader has ended what earlier ones held
	left []string // databases that were listed before
}

// databaseRows is what `citus` knows of one database, for people.
type databaseRows struct {
	Database string            `json:"database"`
	Synced   bool              `json:"synced"`
	Problems []string          `json:"problems,omitempty"`
	Rows     []citus.RowStatus `json:"rows"`
}

// everyGroup is no group: none is left out.
const everyGroup fsm.GroupID = -1

// Reconcile implements conductor.Metadata: one look at every database, and what is found wrong put right.
func (m *metadata) Reconcile(ctx context.Context, term uint64, state func() *fsm.State) conductor.MetadataReport {
	m.takeOver(ctx, term, state())
	out := conductor.MetadataReport{Synced: true}
	databases := state().Cluster.Settings.Databases
	out.Left = m.leave(databases)
	var rows []databaseRows
	var errs []error
	for _, db := range databases {
		want, err := citus.Want(state(), db)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		rep, err := m.pool.Reconcile(ctx, term, want)
		if errors.Is(err, citus.ErrPaused) {
			return conductor.MetadataReport{Paused: true}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("database %s: %w", db, err))
		}
		for _, d := range rep.Differences {
			out.Differences = append(out.Differences, db+": "+d)
		}
		for _, p := range rep.Problems {
			errs = append(errs, fmt.Errorf("database %s: %s", db, p))
		}
		out.Synced = out.Synced && rep.Synced
		rows = append(rows, databaseRows{Database: db, Synced: rep.Synced, Problems: rep.Problems, Rows: slices.Clone(rep.Rows)})
	}
	if err := errors.Join(errs...); err != nil {
		out.Error, out.Synced = err.Error(), false
	}
	out.Rows = rows
	return out
}

// takeOver ends, once in a term, what leaders of earlier terms hold: a pause of theirs would keep the first round waiting. Who
// does not answer holds nothing that matters now, and its dead man's switch does the rest.
func (m *metadata) takeOver(ctx context.Context, term uint64, s *fsm.State) {
	if m.term == term {
		return
	}
	m.term = term
	ws, err := wants(s)
	if err == nil {
		err = m.pool.TakeOver(ctx, term, ws, everyGroup)
	}
	if err != nil {
		m.log.Debug("sessions of earlier leaders not all ended", "error", err)
	}
}

// leave lets go of databases that are not listed any more, and remembers them for the report.
func (m *metadata) leave(databases []string) []string {
	m.left = append(m.left, m.pool.Serve(databases)...)
	slices.Sort(m.left)
	m.left = slices.DeleteFunc(slices.Compact(m.left), func(db string) bool { return slices.Contains(databases, db) })
	return slices.Clone(m.left)
}
