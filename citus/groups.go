package citus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

// startTimeout bounds what makes Citus plan a rebalance: it asks all nodes for sizes.
const startTimeout = time.Minute

// ErrHolds says that a group has the only placement of some shard.
var ErrHolds = errors.New("holds the only copy of shards")

// RebalanceOptions say how shards are spread.
type RebalanceOptions struct {
	Strategy string `json:"strategy,omitempty"` // by_shard_count or by_disk_size; empty: the database's default
	// Mode is how a shard is copied: auto, force_logical or block_writes; empty: auto, which refuses a table that has neither a
	// primary key nor a replica identity. A logical move does not pass a pool that lacks the replication protocol.
	Mode string `json:"mode,omitempty"`
	// drain moves shards off groups that take none, and nothing else.
	drain bool
}

// Rebalance starts moving shards in the background of one database and returns the job's id; 0: nothing has to move. It returns
// ErrDeposed when the database has seen a higher term.
func (p *Pool) Rebalance(ctx context.Context, term uint64, want Wanted, o RebalanceOptions) (int64, error) {
	var job int64
	err := p.onCoordinator(ctx, term, want, func(ctx context.Context, s *session) error {
		err := p.write(ctx, s, false, func(pgx.Tx) error { return nil }) // proves the term, without holding the rows while Citus plans
		if err != nil {
			return err
		}
		job, err = start(ctx, s, o)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("start rebalance of %s: %w", want.Database, err)
	}
	return job, nil
}

func start(ctx context.Context, q Querier, o RebalanceOptions) (int64, error) {
	if o.Mode == "" {
		o.Mode = "auto"
	}
	const sql = `SELECT citus_rebalance_start(rebalance_strategy := nullif($1, '')::name, drain_only := $2,
		shard_transfer_mode := $3::citus.shard_transfer_mode)`
	var job *int64
	if err := q.QueryRow(ctx, sql, o.Strategy, o.drain, o.Mode).Scan(&job); err != nil || job == nil {
		return 0, err
	}
	return *job, nil
}

// StopRebalance cancels the running job of one database. Shards that were moved stay where they are.
func (p *Pool) StopRebalance(ctx context.Context, term uint64, want Wanted) error {
	err := p.onCoordinator(ctx, term, want, func(ctx context.Context, s *session) error {
		return p.write(ctx, s, false, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "SELECT citus_rebalance_stop()")
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("stop rebalance of %s: %w", want.Database, err)
	}
	return nil
}

// Drain lets a group take no more shards of one database and starts moving away those it has. It returns the job's id; 0: there
// is nothing to move.
func (p *Pool) Drain(ctx context.Context, term uint64, want Wanted, g fsm.GroupID, o RebalanceOptions) (int64, error) {
	var job int64
	o.drain = true
	err := p.onCoordinator(ctx, term, want, func(ctx context.Context, s *session) error {
		err := p.takesShards(ctx, s, g, false)
		if err == nil {
			job, err = start(ctx, s, o)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("drain group %d of %s: %w", g, want.Database, err)
	}
	return job, nil
}

// Undrain lets a group take shards again. Nothing moves before the next rebalance.
func (p *Pool) Undrain(ctx context.Context, term uint64, want Wanted, g fsm.GroupID) error {
	err := p.onCoordinator(ctx, term, want, func(ctx context.Context, s *session) error { return p.takesShards(ctx, s, g, true) })
	if err != nil {
		return fmt.Errorf("undrain group %d of %s: %w", g, want.Database, err)
	}
	return nil
}

// takesShards marks all rows of a group, since the first may become a secondary's.
func (p *Pool) takesShards(ctx context.Context, s *session, g fsm.GroupID, may bool) error {
	return p.write(ctx, s, true, func(tx pgx.Tx) error {
		a, err := Observe(ctx, tx)
		if err != nil {
			return err
		}
		if _, ok := a.rowOf(g); !ok {
			return fmt.Errorf("group %d is not registered", g)
		}
		for _, r := range a.Rows {
			if r.Group != g || r.Clone || r.TakesShards == may {
				continue
			}
			const set = "SELECT citus_set_node_property($1, $2::int, 'shouldhaveshards', $3)"
			if _, err := tx.Exec(ctx, set, r.Addr.Host, r.Addr.Port, may); err != nil {
				return err
			}
		}
		return nil
	})
}

// RemoveGroup takes a group's rows out of every database. While it holds the only placement of a shard in any of them nothing
// is removed, and the error is an ErrHolds that names tables and shards. Reconcile registers the group again unless Wanted.Gone
// names it or Wanted.Primaries lacks it.
func (p *Pool) RemoveGroup(ctx context.Context, term uint64, wants []Wanted, g fsm.GroupID) error {
	if err := p.Removable(ctx, wants, g); err != nil {
		return err
	}
	for _, want := range wants {
		err := p.onCoordinator(ctx, term, want, func(ctx context.Context, s *session) error { return p.removeRows(ctx, s, g) })
		if err != nil {
			return fmt.Errorf("remove group %d from %s: %w", g, want.Database, err)
		}
	}
	return nil
}

// Removable looks whether a group's rows could go: the error is RemoveGroup's. It changes nothing and needs no term.
func (p *Pool) Removable(ctx context.Context, wants []Wanted, g fsm.GroupID) error {
	if g == 0 {
		return errors.New("remove group 0: the coordinator cannot be removed")
	}
	var held []string
	for _, want := range wants {
		err := p.onCoordinator(ctx, 0, want, func(ctx context.Context, s *session) error {
			shards, err := onlyHere(ctx, s, g)
			for _, h := range shards {
				held = append(held, fmt.Sprintf("database %s: %s", want.Database, h))
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("remove group %d: %w", g, err)
		}
	}
	if len(held) > 0 {
		return fmt.Errorf("remove group %d: it %w: %s: drain it first", g, ErrHolds, strings.Join(held, "; "))
	}
	return nil
}

// onlyHere names the tables with shards that no other group has.
func onlyHere(ctx context.Context, q Querier, g fsm.GroupID) ([]string, error) {
	const sql = `SELECT logicalrelid::text, array_agg(shardid ORDER BY shardid) FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid)
		WHERE groupid = $1::int AND NOT EXISTS (SELECT FROM pg_dist_placement o WHERE o.shardid = p.shardid AND o.groupid <> p.groupid)
		GROUP BY logicalrelid ORDER BY logicalrelid::text`
	const most = 5
	rows, err := q.Query(ctx, sql, int(g))
	if err != nil {
		return nil, fmt.Errorf("look for shards: %w", err)
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (string, error) {
		var table string
		var ids []int64
		if err := r.Scan(&table, &ids); err != nil {
			return "", err
		}
		more := ""
		if len(ids) > most {
			more = fmt.Sprintf(" and %d more", len(ids)-most)
		}
		return fmt.Sprintf("table %s shard %s%s", table, strings.Trim(fmt.Sprint(ids[:min(most, len(ids))]), "[]"), more), nil
	})
}

func (p *Pool) removeRows(ctx context.Context, s *session, g fsm.GroupID) error {
	return p.write(ctx, s, true, func(tx pgx.Tx) error {
		a, err := Observe(ctx, tx)
		if err != nil {
			return err
		}
		slices.SortStableFunc(a.Rows, func(x, y Row) int { return strings.Compare(y.Role, x.Role) }) // the primary's row last
		var steps []Step
		for _, r := range a.Rows {
			if r.Group == g {
				steps = append(steps, RemoveNode{Row: r})
			}
		}
		return run(ctx, tx, true, steps...)
	})
}

// onCoordinator opens a session of its own, so that long work keeps no round of Reconcile waiting, and makes sure that the
// wanted primary is at its other end.
func (p *Pool) onCoordinator(ctx context.Context, term uint64, want Wanted, f func(context.Context, *session) error) error {
	at := want.Primaries[0]
	if at.Addr.IsZero() {
		return errors.New("the coordinator has no primary now: try again after its failover")
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c, err := p.dialFor(ctx, term, at.Addr, want.Database, time.Second)
	if err != nil {
		return err
	}
	defer closeConn(c)
	a, err := Observe(ctx, c)
	if err != nil {
		return err
	}
	if a.Extension == "" || stray(at, a) {
		return fmt.Errorf("the server at %s is not the coordinator's primary, or has no Citus in %s yet: try again", at.Addr, want.Database)
	}
	return f(ctx, &session{Conn: c, term: term})
}
