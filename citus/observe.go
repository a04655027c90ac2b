package citus

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

// Querier is a session or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const observeServer = `SELECT pg_is_in_recovery(),
	CASE WHEN pg_is_in_recovery() THEN 0 ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint END,
	coalesce((SELECT extversion FROM pg_extension WHERE extname = 'citus'), ''),
	to_regclass('matriarch.conductor') IS NOT NULL`

const observeNodes = `SELECT nodeid, groupid, nodename, nodeport, noderack, noderole::text, nodecluster::text, isactive, hasmetadata,
	coalesce(metadatasynced, false), shouldhaveshards, coalesce((to_jsonb(n) ->> 'nodeisclone')::bool, false) FROM pg_dist_node n ORDER BY nodeid`

// Observe reads what a server shows in one Citus database. It changes nothing.
func Observe(ctx context.Context, q Querier) (Actual, error) {
	var a Actual
	var tl int64
	if err := q.QueryRow(ctx, observeServer).Scan(&a.InRecovery, &tl, &a.Extension, &a.Ready); err != nil {
		return Actual{}, fmt.Errorf("observe server: %w", err)
	}
	a.Timeline = fsm.Timeline(tl)
	if a.Extension == "" {
		a.Ready = false
		return a, nil
	}
	const local = `SELECT (SELECT groupid FROM pg_dist_local_group), coalesce((SELECT encode(sha256(convert_to(authinfo, 'UTF8')), 'hex')
		FROM pg_dist_authinfo WHERE rolename = current_user AND nodeid = 0), '')`
	if err := q.QueryRow(ctx, local).Scan(&a.LocalGroup, &a.authinfo); err != nil {
		return Actual{}, fmt.Errorf("observe local group: %w", err)
	}
	rows, err := q.Query(ctx, observeNodes)
	if err != nil {
		return Actual{}, fmt.Errorf("observe pg_dist_node: %w", err)
	}
	a.Rows, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (Row, error) {
		var n Row
		err := r.Scan(&n.NodeID, &n.Group, &n.Addr.Host, &n.Addr.Port, &n.Rack, &n.Role, &n.Cluster, &n.Active, &n.HasMetadata,
			&n.Synced, &n.TakesShards, &n.Clone)
		return n, err
	})
	if err != nil {
		return Actual{}, fmt.Errorf("observe pg_dist_node: %w", err)
	}
	const pool = `SELECT coalesce(json_object_agg(nodeid, poolinfo), '{}') FROM pg_dist_poolinfo`
	if err := q.QueryRow(ctx, pool).Scan(&a.Pool); err != nil {
		return Actual{}, fmt.Errorf("observe pg_dist_poolinfo: %w", err)
	}
	return a, nil
}
