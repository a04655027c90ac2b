package demo

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Figures are the medians of several runs.
type Figures struct {
	Runs              int     `json:"runs"`
	UpMS              int64   `json:"up_ms"`                    // from empty directories to healthy and registered
	WorkerPostmaster  int64   `json:"gap_worker_postmaster_ms"` // write gap after a killed postmaster of a worker's primary
	WorkerNode        int64   `json:"gap_worker_node_ms"`       // after everything of that node was killed
	CoordinatorNode   int64   `json:"gap_coordinator_node_ms"`
	RSSKB             int64   `json:"rss_kb"`               // agent and sentinel of one node, the greatest of the seven
	IdleCPU           float64 `json:"idle_cpu_percent"`     // agents and sentinels of all seven, in percent of one core
	IdleCPUWithServer float64 `json:"idle_cpu_all_percent"` // with PostgreSQL
	Lost              int     `json:"lost"`                 // of all runs together
	Acknowledged      int     `json:"acknowledged"`         // of all runs together
	Each              []Run   `json:"each"`
}

// Run is one of them.
type Run struct {
	Up               time.Duration `json:"up_ns"`
	WorkerPostmaster time.Duration `json:"gap_worker_postmaster_ns"`
	WorkerNode       time.Duration `json:"gap_worker_node_ns"`
	CoordinatorNode  time.Duration `json:"gap_coordinator_node_ns"`
	RSSKB            int64         `json:"rss_kb"`
	CPU              float64       `json:"idle_cpu_percent"`
	CPUAll           float64       `json:"idle_cpu_all_percent"`
	Tally            tally         `json:"tally"`
}

// idleFor is how long the idle formation is watched.
const idleFor = 10 * time.Second

// Measure runs the outages several times, each in a new formation.
func (d *Demo) Measure(ctx context.Context, runs int) (Figures, error) {
	if d.Exists() {
		return Figures{}, fmt.Errorf("%w in %s: end it with 'matriarch demo down'", ErrExists, d.cfg.Dir)
	}
	f := Figures{Runs: runs}
	for i := range runs {
		r, err := d.measureOnce(ctx)
		if err != nil {
			return f, fmt.Errorf("run %d of %d: %w", i+1, runs, err)
		}
		d.say("run %d of %d: up %.1f s, gaps %d / %d / %d ms, lost %d of %d", i+1, runs, r.Up.Seconds(), r.WorkerPostmaster.Milliseconds(), r.WorkerNode.Milliseconds(),
			r.CoordinatorNode.Milliseconds(), r.Tally.Lost, r.Tally.Acknowledged)
		f.Each = append(f.Each, r)
		f.Lost += r.Tally.Lost
		f.Acknowledged += r.Tally.Acknowledged
	}
	f.UpMS = median(f.Each, func(r Run) time.Duration { return r.Up }).Milliseconds()
	f.WorkerPostmaster = median(f.Each, func(r Run) time.Duration { return r.WorkerPostmaster }).Milliseconds()
	f.WorkerNode = median(f.Each, func(r Run) time.Duration { return r.WorkerNode }).Milliseconds()
	f.CoordinatorNode = median(f.Each, func(r Run) time.Duration { return r.CoordinatorNode }).Milliseconds()
	f.RSSKB = median(f.Each, func(r Run) int64 { return r.RSSKB })
	f.IdleCPU = median(f.Each, func(r Run) float64 { return r.CPU })
	f.IdleCPUWithServer = median(f.Each, func(r Run) float64 { return r.CPUAll })
	if f.Lost > 0 {
		return f, fmt.Errorf("%w: %d", ErrLost, f.Lost)
	}
	return f, nil
}

func (d *Demo) measureOnce(ctx context.Context) (r Run, err error) {
	defer func() {
		if err != nil {
			d.keepLogs()
		}
		if derr := d.Down(context.WithoutCancel(ctx), false); err == nil {
			err = derr
		}
	}()
	if r.Up, err = d.Up(ctx, false); err != nil {
		return r, err
	}
	if err = d.measureIdle(ctx, &r); err != nil {
		return r, err
	}
	w, err := d.beginWriting(ctx)
	if err != nil {
		return r, err
	}
	defer w.stop()
	for _, blow := range []struct {
		group int
		only  string
		gap   *time.Duration
	}{{1, "postmaster", &r.WorkerPostmaster}, {1, "", &r.WorkerNode}, {0, "", &r.CoordinatorNode}} {
		n, err := d.primary(ctx, blow.group)
		if err != nil {
			return r, err
		}
		if *blow.gap, err = d.outage(ctx, w, func() error { return d.Kill(n.Name, blow.only) }); err != nil {
			return r, fmt.Errorf("%s %s: %w", n.Name, blow.only, err)
		}
		if err := d.Start(n.Name); err != nil {
			return r, err
		}
		if _, err := d.waitHealthy(ctx, time.Now()); err != nil {
			return r, err
		}
	}
	w.stop()
	r.Tally, err = w.tally(ctx)
	return r, err
}

// measureIdle watches memory and CPU of a formation that has nothing to do.
func (d *Demo) measureIdle(ctx context.Context, r *Run) error {
	if !sleep(ctx, 3*time.Second) { // the start has its own cost
		return ctx.Err()
	}
	mine, all, _, err := d.usage()
	if err != nil {
		return err
	}
	from := time.Now()
	if !sleep(ctx, idleFor) {
		return ctx.Err()
	}
	mine2, all2, rss, err := d.usage()
	if err != nil {
		return err
	}
	took := time.Since(from)
	r.CPU, r.CPUAll, r.RSSKB = percent(mine2-mine, took), percent(all2-all, took), rss
	return nil
}

func percent(cpu, took time.Duration) float64 { return 100 * cpu.Seconds() / took.Seconds() }

// usage sums CPU times: of agents and sentinels, and of everything; rss is the greatest of one node's agent and sentinel, in kB.
func (d *Demo) usage() (mine, all time.Duration, rss int64, err error) {
	ps, err := processes()
	if err != nil {
		return 0, 0, 0, err
	}
	for _, n := range d.Nodes() {
		ids := n.pids(ps)
		var own int64
		for _, p := range n.everything(ps) {
			all += p.cpu
			if p.pid == ids.Agent || p.pid == ids.Sentinel {
				mine += p.cpu
				own += p.rss
			}
		}
		rss = max(rss, own)
	}
	return mine, all, rss, nil
}

// median takes the middle one, the lower of two.
func median[T cmp.Ordered](runs []Run, of func(Run) T) T {
	values := make([]T, 0, len(runs))
	for _, r := range runs {
		values = append(values, of(r))
	}
	slices.Sort(values)
	var zero T
	if len(values) == 0 {
		return zero
	}
	return values[(len(values)-1)/2]
}
