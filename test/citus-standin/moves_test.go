package standin_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

func (f formation) placements(group int) (n int) {
	f.t.Helper()
	return get[int](f.t, f.session("app"), `SELECT count(*)::int FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
		WHERE shardminvalue IS NOT NULL AND groupid = $1`, group)
}

// rowsEverywhere checks the tables through every node.
func (f formation) rowsEverywhere(want int) {
	f.t.Helper()
	for _, s := range []*server{f.server, f.workers[0], f.workers[1]} {
		for _, table := range []string{"t", "u"} {
			if n := get[int](f.t, s.session("app"), "SELECT count(*)::int FROM "+table); n != want {
				f.t.Errorf("%d rows of %s through %s, want %d", n, table, s.ip, want)
			}
		}
	}
}

func TestMove(t *testing.T) {
	f := newFormation(t)
	c, one, two := f.session("app"), f.nodeID(1), f.nodeID(2)
	shard := get[int64](t, c, "SELECT get_shard_id_for_distribution_column('t', $1::int)", f.key(1))
	w := f.workers
	move := func(by int64, from, to int) string {
		return fmt.Sprintf("SELECT citus_move_shard_placement(%d, %d, %d)", by, from, to)
	}

	refused(t, c, "cannot move shard to the same node", move(shard, one, one))
	refused(t, c, "could not find valid entry for shard 1", move(1, one, two))
	refused(t, c, "could not find placement matching", fmt.Sprintf("SELECT citus_move_shard_placement(%d, '%s', 1, '%s', %d)", shard, w[0].ip, w[1].ip, w[1].port))
	refused(t, w[0].session("app"), "operation is not allowed on this node", move(shard, one, two))
	bare := get[int64](t, c, "SELECT min(shardid) FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) WHERE logicalrelid = 'u'::regclass AND groupid = 1")
	refused(t, c, "REPLICA IDENTITY or PRIMARY KEY", move(bare, one, two))

	old := f.workers[1].session("app") // a transaction from before the move finds the rows in their new place
	f.on(old, "SELECT count(*) FROM t")
	f.on(c, move(shard, one, two))
	f.rowsEverywhere(100)
	if n := f.placements(1); n != 3 {
		t.Errorf("%d placements left in group 1, want 3", n)
	}
	f.on(c, move(shard, one, two)) // a warning: it has moved already
	refused(t, c, "duplicate key", "INSERT INTO t SELECT k, v FROM t LIMIT 1")
	f.on(c, fmt.Sprintf("SELECT citus_move_shard_placement(%d, '%s', %d, '%s', %d, 'block_writes')", shard, w[1].ip, w[1].port, w[0].ip, w[0].port))
	f.rowsEverywhere(100)
	f.on(c, "CALL citus_cleanup_orphaned_resources()")

	refused(t, c, fmt.Sprintf("cannot remove or disable the node %s:%d because because it contains the only shard placement for shard", w[1].ip, w[1].port),
		fmt.Sprintf("SELECT citus_remove_node('%s', %d)", w[1].ip, w[1].port))
	f.on(c, fmt.Sprintf("SELECT citus_drain_node('%s', %d, 'block_writes')", w[1].ip, w[1].port))
	if n := f.placements(2); n != 0 {
		t.Errorf("%d placements left in a drained group, want 0", n)
	}
	f.rowsEverywhere(100)
	f.on(c, fmt.Sprintf("SELECT citus_remove_node('%s', %d)", w[1].ip, w[1].port))
}

// TestMoveUnderLoad moves a shard to and fro while clients write and read through two nodes.
func TestMoveUnderLoad(t *testing.T) {
	f := newFormation(t)
	c, one, two := f.session("app"), f.nodeID(1), f.nodeID(2)
	shard := get[int64](t, c, "SELECT get_shard_id_for_distribution_column('t', $1::int)", f.key(1))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ends := make(chan error, 2)
	var acked [2]atomic.Int64
	for i, s := range []*server{f.server, f.workers[1]} {
		client := s.session("app")
		go func() {
			for k := 10000 * (i + 1); ; k++ {
				if ctx.Err() != nil {
					ends <- nil
					return
				}
				seen, floor := 0, 100+acked[0].Load()+acked[1].Load()
				if err := client.QueryRow(context.WithoutCancel(ctx), "SELECT count(*) FROM t").Scan(&seen); err != nil || int64(seen) < floor {
					ends <- fmt.Errorf("through node %d: %d rows of at least %d: %w", i, seen, floor, err)
					return
				}
				if _, err := client.Exec(context.WithoutCancel(ctx), "INSERT INTO t VALUES ($1, 'new')", k); err != nil {
					ends <- fmt.Errorf("through node %d: %w", i, err)
					return
				}
				acked[i].Add(1)
			}
		}()
	}
	for range 4 {
		f.on(c, fmt.Sprintf("SELECT citus_move_shard_placement(%d, %d, %d, 'block_writes')", shard, one, two))
		one, two = two, one
	}
	cancel()
	for range 2 {
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
	if n, want := get[int64](t, c, "SELECT count(*) FROM t"), 100+acked[0].Load()+acked[1].Load(); n != want {
		t.Errorf("%d rows, want %d", n, want)
	}
	t.Logf("%d rows written meanwhile", acked[0].Load()+acked[1].Load())
}

// startRebalance empties group 2 of t and u, lets it have shards again, holds a write so that the first move cannot
// end, and starts a rebalance. It returns the job and what lets the move go on.
func (f formation) startRebalance() (job int64, release func()) {
	f.t.Helper()
	w := f.workers[1]
	f.do(fmt.Sprintf("SELECT citus_drain_node('%s', %d, 'block_writes')", w.ip, w.port),
		fmt.Sprintf("SELECT citus_set_node_property('%s', %d, 'shouldhaveshards', true)", w.ip, w.port))
	writer := f.session("app")
	f.on(writer, "BEGIN", "UPDATE t SET v = 'held'", "UPDATE u SET v = 'held'")
	job = get[int64](f.t, f.session("app"), "SELECT citus_rebalance_start(shard_transfer_mode := 'block_writes')")
	return job, func() { _, _ = writer.Exec(f.t.Context(), "COMMIT") }
}

func (f formation) jobState(ctx context.Context) string {
	var state string
	if c, err := f.connect(ctx, "app", ""); err == nil {
		_ = c.QueryRow(ctx, "SELECT state::text FROM citus_rebalance_status()").Scan(&state)
		_ = c.Close(ctx)
	}
	return state
}

func TestRebalance(t *testing.T) {
	f := newFormation(t)
	c := f.session("app")
	refused(t, c, "no ongoing rebalance that can be stopped", "SELECT citus_rebalance_stop()")
	refused(t, c, "could not find rebalance strategy with name nope", "SELECT citus_rebalance_start('nope')")
	if job := get[*int64](t, c, "SELECT citus_rebalance_start(shard_transfer_mode := 'block_writes')"); job != nil {
		t.Errorf("job %d where nothing has to move", *job)
	}
	job, release := f.startRebalance()
	refused(t, c, fmt.Sprintf("A rebalance is already running as job %d", job), "SELECT citus_rebalance_start(shard_transfer_mode := 'block_writes')")
	eventually(t, "a move is under way", func(ctx context.Context) bool {
		var source, target string
		err := c.QueryRow(ctx, `SELECT sourcename, targetname FROM get_rebalance_progress() WHERE progress = 1 AND operation_type = 'move'`).Scan(&source, &target)
		return err == nil && source == f.workers[0].ip && target == f.workers[1].ip && f.jobState(ctx) == "running"
	})
	details := get[string](t, c, "SELECT details::text FROM citus_rebalance_status()")
	for _, want := range []string{`"task_state_counts": {`, `"running": 1`, `"command": "SELECT pg_catalog.citus_move_shard_placement(`, `"hosts": {`, `"phase": "`} {
		if !strings.Contains(details, want) {
			t.Errorf("details %s, want %s", details, want)
		}
	}
	if mode := get[bool](t, c, "SELECT bool_or(mode = 'AccessShareLock') FROM pg_locks WHERE relation = 'pg_dist_node'::regclass AND pid <> pg_backend_pid()"); !mode {
		t.Error("a move does not hold pg_dist_node")
	}
	f.on(c, "SELECT citus_rebalance_stop()")
	eventually(t, "the job is cancelled", func(ctx context.Context) bool { return f.jobState(ctx) == "cancelled" })
	release()
	f.rowsEverywhere(100)

	job = get[int64](t, c, "SELECT citus_rebalance_start(shard_transfer_mode := 'block_writes')")
	f.on(c, fmt.Sprintf("SELECT citus_job_wait(%d)", job))
	if state := f.jobState(t.Context()); state != "finished" {
		t.Errorf("job is %s, want finished", state)
	}
	if a, b := f.placements(1), f.placements(2); a != 4 || b != 4 {
		t.Errorf("%d and %d placements, want 4 and 4", a, b)
	}
	f.rowsEverywhere(100)
	if n := get[int](t, c, "SELECT count(*)::int FROM citus_job_list()"); n < 2 {
		t.Errorf("%d jobs, want both", n)
	}
	if n := get[int](t, c, "SELECT count(*)::int FROM citus_check_cluster_node_health() WHERE result"); n != 9 {
		t.Errorf("%d connections, want 9", n)
	}
	if n := get[int](t, c, "SELECT sum(shard_count)::int FROM citus_tables WHERE citus_table_type = 'distributed'"); n != 8 {
		t.Errorf("%d shards in citus_tables, want 8", n)
	}
}

// TestRebalanceSurvives loses a worker and then the coordinator while a job runs.
func TestRebalanceSurvives(t *testing.T) {
	f := newFormation(t)
	standby := f.standby()
	_, release := f.startRebalance()
	eventually(t, "the job runs", func(ctx context.Context) bool { return f.jobState(ctx) == "running" })
	f.workers[1].stop(syscall.SIGQUIT)
	f.workers[1].start()
	release()
	lsn := get[string](t, f.session("postgres"), "SELECT pg_current_wal_flush_lsn()::text")
	eventually(t, "the standby has the job", func(ctx context.Context) bool {
		var ok bool
		return standby.session("postgres").QueryRow(ctx, "SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn", lsn).Scan(&ok) == nil && ok
	})
	f.stop(syscall.SIGQUIT)
	f.on(standby.session("postgres"), "SELECT pg_promote()")
	next := formation{server: standby, workers: f.workers}
	next.do(fmt.Sprintf("SELECT citus_update_node(1, '%s', %d)", standby.ip, standby.port), "SELECT recover_prepared_transactions()")
	next.workers[0].do("SELECT recover_prepared_transactions()")
	eventually(t, "the job is finished", func(ctx context.Context) bool { return next.jobState(ctx) == "finished" })
	if a, b := next.placements(1), next.placements(2); a != 4 || b != 4 {
		t.Errorf("%d and %d placements, want 4 and 4", a, b)
	}
	next.rowsEverywhere(100)
}
