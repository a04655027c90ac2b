package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// clientResult is what one client of one run noticed. Durations are in milliseconds.
type clientResult struct {
	Client    string         `json:"client"`
	GapMS     float64        `json:"gap_ms"`           // longest time between two successes in the window
	SlowestMS float64        `json:"slowest_ms"`       // longest operation that succeeded in the window
	CalmMS    float64        `json:"calm_ms"`          // longest time between two successes in the two seconds before the event
	Done      int            `json:"done"`             // successes, of the whole run
	Errors    map[string]int `json:"errors,omitempty"` // by SQLSTATE or what else went wrong, since the event
	Acked     int            `json:"acknowledged_rows"`
	Lost      int            `json:"lost_rows"`
	Torn      int            `json:"torn_writes,omitempty"` // unanswered writes of which only a part is there
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// longestGap looks at the time between two successes that ends after from and begins before to; none after it lasts until to.
func longestGap(samples []sample, from, to time.Time) time.Duration {
	last, longest := from, time.Duration(0)
	for _, s := range samples {
		switch {
		case s.code != "":
		case !s.to.After(from):
			last = s.to
		case last.Before(to):
			longest, last = max(longest, s.to.Sub(last)), s.to
		}
	}
	if last.Before(to) {
		longest = max(longest, to.Sub(last))
	}
	return longest
}

// slowest is the longest successful operation that was under way in the window.
func slowest(samples []sample, from, to time.Time) time.Duration {
	longest := time.Duration(0)
	for _, s := range samples {
		if s.code == "" && s.to.After(from) && s.from.Before(to) {
			longest = max(longest, s.to.Sub(s.from))
		}
	}
	return longest
}

// result is called once the client has stopped. Errors count from the event on.
func (c *client) result(event, until time.Time) clientResult {
	r := clientResult{
		Client: c.name, GapMS: ms(longestGap(c.samples, event, until)), SlowestMS: ms(slowest(c.samples, event, until)),
		Errors: map[string]int{}, Acked: len(c.acked) * c.rows,
	}
	before := slices.DeleteFunc(slices.Clone(c.samples), func(s sample) bool { return s.to.After(event) })
	r.CalmMS = ms(longestGap(before, event.Add(-calmBefore), event))
	for _, s := range c.samples {
		switch {
		case s.code == "":
			r.Done++
		case s.to.After(event):
			r.Errors[s.code]++
		}
	}
	return r
}

// missing counts acknowledged rows that are not there and unanswered writes of which only some rows are.
func (c *client) missing(there map[int64]bool) (lost, torn int) {
	present := func(n int64) (count int) {
		for i := range c.rows {
			if there[n+int64(i)] {
				count++
			}
		}
		return count
	}
	for _, n := range c.acked {
		lost += c.rows - present(n)
	}
	for _, n := range c.unknown {
		if p := present(n); p != 0 && p != c.rows {
			torn++
		}
	}
	return lost, torn
}

// lateLimit is how long rows of transactions that are prepared, but not finished yet, may take to appear: Citus' own recovery looks once a
// minute.
const lateLimit = 100 * time.Second

// countLost fills in what is missing. Acknowledged rows that appear within the limit are late, not lost; it returns how late.
func countLost(ctx context.Context, dsn string, first int64, clients []*client, results []clientResult) (late time.Duration, err error) {
	began := time.Now()
	for {
		there, err := rowsFrom(ctx, dsn, first)
		if err != nil {
			return 0, err
		}
		lost, torn := 0, 0
		for i, c := range clients {
			results[i].Lost, results[i].Torn = c.missing(there)
			lost, torn = lost+results[i].Lost, torn+results[i].Torn
		}
		took := time.Since(began)
		if lost == 0 && late == 0 {
			late = took
		}
		if took > lateLimit {
			return cmp.Or(late, took), nil
		}
		if lost+torn == 0 {
			return late, nil
		}
		if !sleep(ctx, time.Second) {
			return 0, ctx.Err()
		}
	}
}

// rowsFrom reads the numbers of one run's rows.
func rowsFrom(ctx context.Context, dsn string, first int64) (map[int64]bool, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("count rows: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	there := map[int64]bool{}
	for _, table := range []string{"bench_rows", "bench_reference"} {
		rows, err := conn.Query(ctx, "SELECT n FROM "+table+" WHERE n >= $1", first)
		if err != nil {
			return nil, fmt.Errorf("count rows: %w", err)
		}
		numbers, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return nil, fmt.Errorf("count rows: %w", err)
		}
		for _, n := range numbers {
			there[n] = true
		}
	}
	return there, nil
}

// spread is the median, the least and the greatest of some figures.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

// spreadOf takes the mean of the two in the middle when there are two.
func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return spread{Median: (s[(n-1)/2] + s[n/2]) / 2, Min: s[0], Max: s[n-1], N: n}
}
