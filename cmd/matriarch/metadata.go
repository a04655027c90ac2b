package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"matriarch/citus"
	"matriarch/fsm"
	"matriarch/internal/conductor"
	"matriarch/pgmanager"
)

// metadata keeps pg_dist_node right while this node leads; nil without Citus.
func (n *node) metadata(pg pgmanager.Config) conductor.Metadata {
	if !pg.Citus {
		return nil
	}
	n.citus = citus.NewPool(citus.Config{User: pg.Superuser, Password: pg.SuperuserPassword})
	return metadata{n.citus}
}

type metadata struct{ pool *citus.Pool }

// databaseRows is what `citus` knows of one database, for people.
type databaseRows struct {
	Database string            `json:"database"`
	Synced   bool              `json:"synced"`
	Problems []string          `json:"problems,omitempty"`
	Rows     []citus.RowStatus `json:"rows"`
}

// Reconcile implements conductor.Metadata: one look at every database, and what is found wrong put right.
func (m metadata) Reconcile(ctx context.Context, term uint64, s *fsm.State) conductor.MetadataReport {
	out := conductor.MetadataReport{Synced: true}
	var rows []databaseRows
	var errs []error
	for _, db := range s.Cluster.Settings.Databases {
		want, err := citus.Want(s, db)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		rep, err := m.pool.Reconcile(ctx, term, want)
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
