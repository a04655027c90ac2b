package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// The groups of the formation. Whatever happens to a worker happens to struckWorker; clients that enter through a worker enter through
// the other one, which has nothing to do with it but its rows of the metadata.
const (
	coordinator  = 0
	struckWorker = 1
	entryWorker  = 2
)

// kind is what a client does again and again. Do works on the slot at that place; a write makes rows numbered from n.
type kind struct {
	name  string
	entry int           // the group whose primary it connects to
	every time.Duration // from the beginning of one operation to that of the next; 0: at once
	rows  int           // that one operation writes; 0: it reads
	do    func(ctx context.Context, c *pgx.Conn, slots []int, at int, n int64) error
}

const insertRow = "INSERT INTO bench_rows (slot, n) VALUES ($1, $2)"

// kinds are the clients of every scenario.
func kinds() []kind {
	return []kind{
		{"insert via coordinator", coordinator, opEvery, 1, insert},
		{"insert via worker", entryWorker, opEvery, 1, insert},
		{"select 1 shard via coordinator", coordinator, opEvery, 0, selectOne},
		{"select 1 shard via worker", entryWorker, opEvery, 0, selectOne},
		{"select all shards", coordinator, opEvery, 0, selectAll},
		{"transaction on 2 shards", coordinator, opEvery, 2, twoShards(0)},
		{"COPY", coordinator, opEvery, copyRows, copyIn},
		{"reference table write", coordinator, opEvery, 1, insertReference},
	}
}

// busyKinds are added where transactions of 20 ms stand in the way of the pause; they know no rest.
func busyKinds() []kind {
	return []kind{
		{"20 ms transaction via coordinator", coordinator, 0, 2, twoShards(20 * time.Millisecond)},
		{"20 ms transaction via worker", entryWorker, 0, 2, twoShards(20 * time.Millisecond)},
	}
}

// pick takes slots in turn; neighbours live in different groups where the extension tells where they live.
func pick(slots []int, at int) int { return slots[at%len(slots)] }

func insert(ctx context.Context, c *pgx.Conn, slots []int, at int, n int64) error {
	_, err := c.Exec(ctx, insertRow, pick(slots, at), n)
	return err
}

func insertReference(ctx context.Context, c *pgx.Conn, _ []int, _ int, n int64) error {
	_, err := c.Exec(ctx, "INSERT INTO bench_reference (n) VALUES ($1)", n)
	return err
}

func selectOne(ctx context.Context, c *pgx.Conn, slots []int, at int, _ int64) error {
	var n int64
	return c.QueryRow(ctx, "SELECT count(*) FROM bench_read WHERE slot = $1", pick(slots, at)).Scan(&n)
}

func selectAll(ctx context.Context, c *pgx.Conn, _ []int, _ int, _ int64) error {
	var n int64
	return c.QueryRow(ctx, "SELECT count(*) FROM bench_read").Scan(&n)
}

// twoShards writes two rows in one transaction, which may stay open for a while.
func twoShards(hold time.Duration) func(context.Context, *pgx.Conn, []int, int, int64) error {
	return func(ctx context.Context, c *pgx.Conn, slots []int, at int, n int64) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			for i := range 2 {
				if _, err := tx.Exec(ctx, insertRow, pick(slots, at+i), n+int64(i)); err != nil {
					return err
				}
			}
			if hold == 0 {
				return nil
			}
			_, err := tx.Exec(ctx, "SELECT pg_sleep($1)", hold.Seconds())
			return err
		})
	}
}

const copyRows = 4

func copyIn(ctx context.Context, c *pgx.Conn, slots []int, at int, n int64) error {
	var b strings.Builder
	for i := range copyRows {
		fmt.Fprintf(&b, "%d\t%d\n", pick(slots, at+i), n+int64(i))
	}
	_, err := c.PgConn().CopyFrom(ctx, strings.NewReader(b.String()), "COPY bench_rows (slot, n) FROM STDIN")
	return err
}

const slotCount = 64

// createTables makes what the clients work on and returns the slots in the order in which they are used, and what the extension calls itself.
func createTables(ctx context.Context, dsn string) (slots []int, citus string, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, "", fmt.Errorf("create the tables: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := conn.QueryRow(ctx, "SELECT citus_version()").Scan(&citus); err != nil {
		return nil, "", fmt.Errorf("create the tables: %w", err)
	}
	for _, sql := range []string{
		"SET citus.shard_count = 8",
		"CREATE TABLE bench_rows (slot int NOT NULL, n bigint NOT NULL, PRIMARY KEY (slot, n))",
		"SELECT create_distributed_table('bench_rows', 'slot')",
		"CREATE TABLE bench_read (slot int NOT NULL, n bigint NOT NULL, PRIMARY KEY (slot, n))",
		"SELECT create_distributed_table('bench_read', 'slot')",
		fmt.Sprintf("INSERT INTO bench_read SELECT i %% %d, i FROM generate_series(0, 1023) i", slotCount),
		"CREATE TABLE bench_reference (n bigint PRIMARY KEY)",
		"SELECT create_reference_table('bench_reference')",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return nil, "", fmt.Errorf("create the tables: %s: %w", sql, err)
		}
	}
	slots, err = slotOrder(ctx, conn)
	return slots, citus, err
}

// slotOrder alternates between the groups; the stand-in cannot tell, and leaves them as they are.
func slotOrder(ctx context.Context, conn *pgx.Conn) ([]int, error) {
	var known bool
	if err := conn.QueryRow(ctx, "SELECT to_regproc('pg_catalog.get_shard_id_for_distribution_column') IS NOT NULL").Scan(&known); err != nil {
		return nil, fmt.Errorf("order the slots: %w", err)
	}
	sql := fmt.Sprintf("SELECT i FROM generate_series(0, %d) i ORDER BY i", slotCount-1)
	if known {
		sql = fmt.Sprintf(`SELECT i FROM (SELECT i, p.groupid, row_number() OVER (PARTITION BY p.groupid ORDER BY i) AS place
			FROM generate_series(0, %d) i JOIN pg_dist_placement p ON p.shardid = get_shard_id_for_distribution_column('bench_rows', i)) s ORDER BY place, groupid`, slotCount-1)
	}
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, fmt.Errorf("order the slots: %w", err)
	}
	slots, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return nil, fmt.Errorf("order the slots: %w", err)
	}
	return slots, nil
}

// dirtyPages fills a table outside of Citus on one server, one row a page, after a checkpoint: that many megabytes of its buffers are dirty.
func dirtyPages(ctx context.Context, dsn string, megabytes int) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return fmt.Errorf("dirty the buffers: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, sql := range []string{
		"CREATE TABLE IF NOT EXISTS bench_dirty (n int, filler text)",
		"ALTER TABLE bench_dirty ALTER COLUMN filler SET STORAGE PLAIN",
		"TRUNCATE bench_dirty", "CHECKPOINT",
		fmt.Sprintf("INSERT INTO bench_dirty SELECT i, repeat('x', 7000) FROM generate_series(1, %d) i", megabytes*128),
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("dirty the buffers: %w", err)
		}
	}
	return nil
}
