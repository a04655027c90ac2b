package citus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

// appName begins the application_name of every session; the Raft term follows.
const appName = "matriarch conductor term="

// ErrDeposed says that a conductor of a higher term has written since.
var ErrDeposed = errors.New("a conductor of a higher term is at work")

// errStale says that a row is no longer what was observed; the next round sees what is there.
var errStale = errors.New("row changed meanwhile")

// EndOlder ends the sessions of conductors of lower terms on a server and says how many there were.
func EndOlder(ctx context.Context, q Querier, term uint64) (int, error) {
	const end = `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
		WHERE application_name LIKE $1 || '%' AND substr(application_name, length($1) + 1) ~ '^[0-9]{1,18}$'
		AND substr(application_name, length($1) + 1)::bigint < $2 AND pid <> pg_backend_pid()`
	var n int
	if err := q.QueryRow(ctx, end, appName, int64(term)).Scan(&n); err != nil {
		return 0, fmt.Errorf("end sessions of older conductors: %w", err)
	}
	return n, nil
}

// prove writes the term into the conductor's table unless a higher one is there. The row stays locked to the end of the
// transaction, so conductors follow one another.
func prove(ctx context.Context, tx pgx.Tx, term uint64) error {
	b := &pgx.Batch{}
	queueProof(b, term)
	return tx.SendBatch(ctx, b).Close()
}

func queueProof(b *pgx.Batch, term uint64) {
	const mine = `INSERT INTO matriarch.conductor AS c (term) VALUES ($1)
		ON CONFLICT (one) DO UPDATE SET term = excluded.term, at = now() WHERE c.term <= excluded.term`
	queue(b, fmt.Sprintf("prove term %d", term), func(n int64) error {
		if n == 0 {
			return ErrDeposed
		}
		return nil
	}, mine, int64(term))
}

// queue adds a statement to a batch, which costs one exchange with the server however many it holds: clients wait for some of
// them, on hosts that are busy with a failover. Judge, if there is one, gets the number of its rows; what names it in an error.
func queue(b *pgx.Batch, what string, judge func(rows int64) error, sql string, args ...any) {
	b.Queue(sql, args...).Fn = func(br pgx.BatchResults) error {
		tag, err := br.Exec()
		if err == nil && judge != nil {
			err = judge(tag.RowsAffected())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
}

// write runs f in a transaction that may change metadata: nobody else changes any meanwhile, and the term is proven. Only a
// durable one waits for standbys: addresses come from the replicated state and are compared again by every round.
func (p *Pool) write(ctx context.Context, s *session, durable bool, f func(pgx.Tx) error) error {
	tx, err := s.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if s.fresh {
		// The very first statement: the maintenance daemon, which a query wakes, must find the rows held. What is in the way,
		// perhaps an older conductor, is dealt with next.
		_ = tryLock(ctx, tx)
		if _, err := EndOlder(ctx, tx, s.term); err != nil {
			return err
		}
	}
	if err := lockRows(ctx, tx); err != nil {
		return fmt.Errorf("lock pg_dist_node: %w", err)
	}
	level := "local"
	if durable {
		level = "on"
	}
	b := &pgx.Batch{}
	queueProof(b, s.term)
	queue(b, "set synchronous_commit", nil, "SELECT set_config('synchronous_commit', $1, true)", level)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	s.fresh = false
	return nil
}

// lockRows keeps all others from changing pg_dist_node. Citus' sync daemon holds the table for as long as it waits for a node
// that does not answer, 5 s of every 5.5: it is ended, and starts again after the commit.
func lockRows(ctx context.Context, tx pgx.Tx) error {
	const endDaemon = `SELECT pg_cancel_backend(pid), pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE locktype = 'relation' AND relation = 'pg_catalog.pg_dist_node'::regclass AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND application_name = 'Citus Metadata Sync Daemon' AND backend_type <> 'client backend'`
	const notInTime = "55P03"
	err := tryLock(ctx, tx)
	if sqlState(err) != notInTime {
		return err
	}
	if _, err := tx.Exec(ctx, endDaemon); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, lock)
	return err
}

const lock = `LOCK TABLE pg_catalog.pg_dist_node IN SHARE ROW EXCLUSIVE MODE`

// tryLock waits a moment only, and leaves the transaction usable.
func tryLock(ctx context.Context, tx pgx.Tx) error {
	const try = "SAVEPOINT try; SET LOCAL lock_timeout = '300ms'; " + lock + "; RELEASE SAVEPOINT try"
	_, err := tx.Exec(ctx, try, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		_, back := tx.Exec(ctx, "ROLLBACK TO SAVEPOINT try", pgx.QueryExecModeSimpleProtocol)
		err = errors.Join(err, back)
	}
	return err
}

// settle is the first transaction in a coordinator's database: whatever its rows say from the past is put right before
// anybody reads them. Without the extension or the conductor's table there is nothing to put right.
func (p *Pool) settle(ctx context.Context, s *session, want Wanted) ([]Step, error) {
	var done []Step
	err := p.write(ctx, s, false, func(tx pgx.Tx) error {
		a, err := Observe(ctx, tx)
		if err != nil {
			return err
		}
		done = addresses(Diff(p.hold(want, a.Rows, time.Now()), map[fsm.GroupID]Actual{0: a}))
		return run(ctx, tx, true, done...)
	})
	const undefinedTable, invalidSchema, readOnly, inRecovery = "42P01", "3F000", "25006", "55000"
	switch sqlState(err) {
	case undefinedTable, invalidSchema, readOnly, inRecovery:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("settle coordinator: %w", err)
	}
	return done, nil
}

// run carries steps out, in one exchange. Extension and recovery have ways of their own. Force lets Citus end, after a second, the
// sessions that hold the shards of a node whose address changes: they wait for a server that is gone. In a pause nobody can
// hold any, and the worker process that would end them need not be started.
func run(ctx context.Context, tx pgx.Tx, force bool, steps ...Step) error {
	if len(steps) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	for _, s := range steps {
		if err := queueStep(b, s, force); err != nil {
			return err
		}
	}
	return tx.SendBatch(ctx, b).Close()
}

func queueStep(b *pgx.Batch, step Step, force bool) error {
	what := step.String()
	switch s := step.(type) {
	case UpdateNode:
		const cooldown = 1000 // milliseconds
		const update = `SELECT citus_update_node(nodeid, $4, $5::int, $7, $6::int) FROM pg_dist_node
			WHERE nodeid = $1::int AND nodename = $2 AND nodeport = $3::int`
		queue(b, what, nil, "SET LOCAL lock_timeout = '8s'")
		queue(b, what, one, update, s.NodeID, s.From.Host, s.From.Port, s.To.Host, s.To.Port, cooldown, force)
	case UpdateRow: // the coordinator's daemon may have carried the new row there a moment before
		const update = `UPDATE pg_dist_node SET nodename = $4, nodeport = $5::int WHERE nodeid = $1::int AND nodename = $2 AND nodeport = $3::int`
		const there = `SELECT FROM pg_dist_node WHERE nodeid = $1::int AND nodename = $2 AND nodeport = $3::int`
		queue(b, what, nil, update, s.NodeID, s.From.Host, s.From.Port, s.To.Host, s.To.Port)
		queue(b, what, one, there, s.NodeID, s.To.Host, s.To.Port)
	case CopyRow:
		const insert = `INSERT INTO pg_dist_node (nodeid, groupid, nodename, nodeport, noderack, noderole, nodecluster, isactive,
			hasmetadata, metadatasynced, shouldhaveshards) 
			VALUES ($1::int, $2::int, $3, $4::int, $5, $6::noderole, $7::name, $8, $9, $10, $11)`
		r := s.Row
		queue(b, what, one, insert, r.NodeID, int(r.Group), r.Addr.Host, r.Addr.Port, r.Rack, r.Role, r.Cluster, r.Active,
			r.HasMetadata, r.Synced, r.TakesShards)
	case DropRow:
		const remove = `DELETE FROM pg_dist_node WHERE nodeid = $1::int AND nodename = $2 AND nodeport = $3::int`
		queue(b, what, one, remove, s.Row.NodeID, s.Row.Addr.Host, s.Row.Addr.Port)
	case SetCoordinatorHost:
		queue(b, what, nil, "SELECT citus_set_coordinator_host($1, $2::int)", s.Addr.Host, s.Addr.Port)
	case AddNode:
		queue(b, what, nil, "SELECT citus_add_node($1, $2::int, $3::int)", s.Addr.Host, s.Addr.Port, int(s.Group))
	case AddSecondary:
		const add = "SELECT citus_add_node($1, $2::int, $3::int, 'secondary', $4::name)"
		queue(b, what, nil, add, s.Addr.Host, s.Addr.Port, int(s.Group), s.NodeCluster)
	case ActivateNode:
		queue(b, what, nil, "SELECT citus_activate_node($1, $2::int)", s.Row.Addr.Host, s.Row.Addr.Port)
	case FixRow:
		const fix = `UPDATE pg_dist_node SET groupid = $4::int, noderole = $5::noderole, nodecluster = $6::name, isactive = $7, hasmetadata = $8
			WHERE nodeid = $1::int AND nodename = $2 AND nodeport = $3::int`
		r := s.Row
		queue(b, what, one, fix, r.NodeID, r.Addr.Host, r.Addr.Port, int(r.Group), r.Role, r.Cluster, r.Active, r.HasMetadata)
	case SetPool:
		const set = `INSERT INTO pg_dist_poolinfo (nodeid, poolinfo) VALUES ($1::int, $2)
			ON CONFLICT (nodeid) DO UPDATE SET poolinfo = excluded.poolinfo`
		queue(b, what, nil, set, s.NodeID, s.Info)
	case DropPool:
		queue(b, what, nil, "DELETE FROM pg_dist_poolinfo WHERE nodeid = $1::int", s.NodeID)
	case RemoveNode:
		queue(b, what, nil, "SELECT citus_remove_node($1, $2::int)", s.Row.Addr.Host, s.Row.Addr.Port)
	default:
		return fmt.Errorf("%s: no way to run %T", what, step)
	}
	return nil
}

// one insists on exactly one row.
func one(rows int64) error {
	if rows != 1 {
		return errStale
	}
	return nil
}
