package citus

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Move is one shard on its way, or planned to go, from one node to another.
type Move struct {
	Table  string `json:"table"`
	Shard  int64  `json:"shard"`
	Bytes  int64  `json:"bytes"`
	Copied int64  `json:"copied"` // bytes at the target now; 0 in a plan
	From   Addr   `json:"from"`
	To     Addr   `json:"to"`
	State  string `json:"state"`            // planned, waiting, moving, done
	Detail string `json:"detail,omitempty"` // Citus' own words: "Copying Data", "Catching Up", ...
}

// Job is a rebalance in the background.
type Job struct {
	ID          int64          `json:"id"`
	State       string         `json:"state"` // scheduled, running, finished, cancelling, cancelled, failing, failed
	Description string         `json:"description"`
	Started     *time.Time     `json:"started,omitempty"`
	Finished    *time.Time     `json:"finished,omitempty"`
	Tasks       map[string]int `json:"tasks"`            // how many are blocked, runnable, running, done, error, ...
	Errors      []string       `json:"errors,omitempty"` // what tasks that failed or are tried again said
}

// Active reports whether shards move or will.
func (j Job) Active() bool {
	switch j.State {
	case "scheduled", "running", "cancelling", "failing":
		return true
	}
	return false
}

// Done returns how many tasks of how many are done.
func (j Job) Done() (done, all int) {
	for state, n := range j.Tasks {
		all += n
		if state == "done" {
			done += n
		}
	}
	return done, all
}

// Progress is what moves in one database.
type Progress struct {
	Job   *Job   `json:"job,omitempty"` // the newest rebalance; nil: there was none
	Moves []Move `json:"moves"`         // of now, also those that no job began
}

// Plan lists what a rebalance would move. It changes nothing and needs no term.
func (p *Pool) Plan(ctx context.Context, want Wanted, o RebalanceOptions) ([]Move, error) {
	var out []Move
	err := p.onCoordinator(ctx, 0, want, func(ctx context.Context, s *session) error {
		const sql = `SELECT table_name::text, shardid, coalesce(shard_size, 0), 0::bigint, sourcename, sourceport, targetname, targetport,
			'planned', '' FROM get_rebalance_table_shards_plan(rebalance_strategy := nullif($1, '')::name, drain_only := $2)`
		var err error
		out, err = movesOf(ctx, s, sql, o.Strategy, o.drain)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("plan rebalance of %s: %w", want.Database, err)
	}
	return out, nil
}

// PlanDrain lists what would leave the groups that take no shards.
func (p *Pool) PlanDrain(ctx context.Context, want Wanted, o RebalanceOptions) ([]Move, error) {
	o.drain = true
	return p.Plan(ctx, want, o)
}

// Progress looks at the newest rebalance of one database and at the shards that move now. It needs no term.
func (p *Pool) Progress(ctx context.Context, want Wanted) (Progress, error) {
	var out Progress
	err := p.onCoordinator(ctx, 0, want, func(ctx context.Context, s *session) (err error) {
		if out.Job, err = newestJob(ctx, s); err != nil {
			return err
		}
		out.Moves, err = movesOf(ctx, s, nowMoving)
		return err
	})
	if err != nil {
		return Progress{}, fmt.Errorf("progress of %s: %w", want.Database, err)
	}
	return out, nil
}

// MovesRunning names what keeps a switchover from getting its lock in one database: moves under way and a job that will begin
// more. It needs no term.
func (p *Pool) MovesRunning(ctx context.Context, want Wanted) ([]string, error) {
	g, err := p.Progress(ctx, want)
	const undefinedFunction = "42883" // a Citus that cannot rebalance in the background
	if sqlState(err) == undefinedFunction {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	if g.Job != nil && g.Job.Active() {
		done, all := g.Job.Done()
		out = append(out, fmt.Sprintf("rebalance job %d of database %s is %s, %d of %d moves done", g.Job.ID, want.Database, g.Job.State, done, all))
	}
	for _, m := range g.Moves {
		if m.State != "done" {
			out = append(out, fmt.Sprintf("shard %d of %s in database %s moves from %s to %s", m.Shard, m.Table, want.Database, m.From, m.To))
		}
	}
	return out, nil
}

const nowMoving = `SELECT table_name::text, shardid, coalesce(source_shard_size, 0), coalesce(target_shard_size, 0), sourcename, sourceport,
	targetname, targetport, CASE progress WHEN 0 THEN 'waiting' WHEN 1 THEN 'moving' ELSE 'done' END, coalesce(status, '')
	FROM get_rebalance_progress()`

func movesOf(ctx context.Context, q Querier, sql string, args ...any) ([]Move, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (Move, error) {
		var m Move
		err := r.Scan(&m.Table, &m.Shard, &m.Bytes, &m.Copied, &m.From.Host, &m.From.Port, &m.To.Host, &m.To.Port, &m.State, &m.Detail)
		return m, err
	})
}

func newestJob(ctx context.Context, q Querier) (*Job, error) {
	const sql = `SELECT job_id, state::text, coalesce(description, ''), started_at, finished_at, coalesce(details, '{}')
		FROM citus_rebalance_status() ORDER BY job_id DESC LIMIT 1`
	rows, err := q.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	jobs, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (*Job, error) {
		var j Job
		var details []byte
		if err := r.Scan(&j.ID, &j.State, &j.Description, &j.Started, &j.Finished, &details); err != nil {
			return nil, err
		}
		return &j, j.read(details)
	})
	if err != nil || len(jobs) == 0 {
		return nil, err
	}
	return jobs[0], nil
}

// read takes from Citus' description of the tasks what people need.
func (j *Job) read(details []byte) error {
	var d struct {
		Tasks []struct {
			ID      int64  `json:"task_id"`
			Message string `json:"message"`
			Retried int    `json:"retried"`
		} `json:"tasks"`
		Counts map[string]int `json:"task_state_counts"`
	}
	if err := json.Unmarshal(details, &d); err != nil {
		return fmt.Errorf("read details of job %d: %w", j.ID, err)
	}
	j.Tasks = d.Counts
	for _, t := range d.Tasks {
		if t.Message != "" {
			j.Errors = append(j.Errors, fmt.Sprintf("task %d, tried again %d times: %s", t.ID, t.Retried, t.Message))
		}
	}
	return nil
}
