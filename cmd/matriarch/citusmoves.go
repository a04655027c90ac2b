package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"matriarch/citus"
	"matriarch/fsm"
	"matriarch/internal/admin"
)

func (p *program) citusRebalance(c *cli.Context, cl cluster, _ fsm.GroupID) error {
	switch {
	case c.Bool("plan") && c.Bool("stop"):
		return usagef(c, "--plan and --stop: give one of them")
	case c.Bool("stop"):
		answers, err := leadCitus(c, cl, citusAsk(c, admin.CitusStop, 0))
		if err == nil {
			err = failures(c, answers)
		}
		if err != nil {
			return err
		}
		return done(c, "what was under way is cancelled; shards that were moved stay where they are")
	case c.Bool("watch"): // a job under way is joined
		if jobs := activeJobs(c, cl); len(jobs) > 0 {
			return p.watchMoves(c, cl, jobs)
		}
	}
	plan, err := cl.Citus(c.Context, fsm.Node{}, citusAsk(c, admin.CitusPlan, 0))
	if err != nil {
		return fmt.Errorf("rebalance: %w", err)
	}
	if err := failures(c, plan); err != nil {
		return err
	}
	if c.Bool("plan") {
		return emit(c, plan, func(w io.Writer) { renderPlan(w, plan) })
	}
	if c.String("output") == "table" {
		renderPlan(p.out, plan)
	}
	answers, err := leadCitus(c, cl, citusAsk(c, admin.CitusRebalance, 0))
	if err != nil {
		return err
	}
	return p.started(c, cl, answers, "shards are spread as they should be")
}

func (p *program) citusDrain(c *cli.Context, cl cluster, g fsm.GroupID) error {
	if c.Bool("undo") {
		answers, err := leadCitus(c, cl, citusAsk(c, admin.CitusUndrain, g))
		if err == nil {
			err = failures(c, answers)
		}
		if err != nil {
			return err
		}
		return done(c, "group %d takes shards again; nothing moves before the next 'matriarch citus rebalance'", g)
	}
	answers, err := leadCitus(c, cl, citusAsk(c, admin.CitusDrain, g))
	if err != nil {
		return err
	}
	return p.started(c, cl, answers, fmt.Sprintf("group %d has no shards", g))
}

// started tells what began, and follows it if asked to.
func (p *program) started(c *cli.Context, cl cluster, answers []admin.CitusAnswer, idle string) error {
	jobs := map[string]int64{}
	for _, a := range answers {
		if a.Job != 0 {
			jobs[a.Database] = a.Job
		}
	}
	watch := c.Bool("watch") && len(jobs) > 0
	if c.String("output") == "table" {
		for _, a := range answers {
			switch {
			case a.Job != 0:
				fmt.Fprintf(p.out, "%s: job %d has begun\n", a.Database, a.Job)
			case a.Error == "":
				fmt.Fprintf(p.out, "%s: nothing has to move: %s\n", a.Database, idle)
			}
		}
		if len(jobs) > 0 && !watch {
			fmt.Fprintln(p.out, "watch it with 'matriarch citus rebalance --watch', cancel it with 'matriarch citus rebalance --stop'")
		}
	} else if !watch {
		if err := emit(c, answers, nil); err != nil {
			return err
		}
	}
	if err := failures(c, answers); err != nil {
		return err
	}
	if watch {
		return p.watchMoves(c, cl, jobs)
	}
	return nil
}

// activeJobs are those under way, by database.
func activeJobs(c *cli.Context, cl cluster) map[string]int64 {
	jobs := map[string]int64{}
	answers, err := cl.Citus(c.Context, fsm.Node{}, citusAsk(c, admin.CitusProgress, 0))
	if err != nil {
		return nil // who asks next says why
	}
	for _, a := range answers {
		if a.Progress != nil && a.Progress.Job != nil && a.Progress.Job.Active() {
			jobs[a.Database] = a.Progress.Job.ID
		}
	}
	return jobs
}

// watchMoves shows the jobs until all have ended. While a coordinator fails over nobody can tell how far they are: it asks again.
func (p *program) watchMoves(c *cli.Context, cl cluster, jobs map[string]int64) error {
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	show := newCanvas(p.out, c.String("output") == "table")
	t := time.NewTicker(time.Duration(c.Float64("interval") * float64(time.Second)))
	defer t.Stop()
	for {
		answers, err := cl.Citus(ctx, fsm.Node{}, citusAsk(c, admin.CitusProgress, 0))
		answers = followed(answers, jobs)
		if err == nil {
			err = failures(c, answers)
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%s: not finished; it goes on without you: 'matriarch citus rebalance --watch' shows it again", c.Command.Name)
		case err != nil:
			show.draw(fmt.Sprintf("no progress to be seen just now, asking again: %v\n", err))
		default:
			show.draw(progressText(answers))
			if ended(answers, jobs) {
				return p.endOfMoves(c, answers)
			}
		}
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
}

// followed leaves the databases in which something was started.
func followed(answers []admin.CitusAnswer, jobs map[string]int64) (out []admin.CitusAnswer) {
	for _, a := range answers {
		if _, ours := jobs[a.Database]; ours {
			out = append(out, a)
		}
	}
	return out
}

func ended(answers []admin.CitusAnswer, jobs map[string]int64) bool {
	for _, a := range answers {
		if j := a.Progress.Job; j == nil || j.ID < jobs[a.Database] || j.Active() {
			return false
		}
	}
	return len(answers) == len(jobs)
}

func (p *program) endOfMoves(c *cli.Context, answers []admin.CitusAnswer) error {
	if c.String("output") != "table" {
		if err := emit(c, answers, nil); err != nil {
			return err
		}
	}
	var bad []string
	for _, a := range answers {
		if j := a.Progress.Job; j.State != "finished" {
			bad = append(bad, strings.Join(append([]string{fmt.Sprintf("database %s: job %d is %s", a.Database, j.ID, j.State)}, j.Errors...), ": "))
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%s: %s", c.Command.Name, strings.Join(bad, "; "))
	}
	return nil
}

// canvas shows a picture that changes: on a terminal in its place, elsewhere one below the other.
type canvas struct {
	w    io.Writer
	tty  bool
	on   bool
	last string
}

func newCanvas(w io.Writer, on bool) *canvas {
	f, ok := w.(*os.File)
	return &canvas{w: w, on: on, tty: ok && term.IsTerminal(int(f.Fd()))}
}

func (v *canvas) draw(text string) {
	if !v.on || text == v.last {
		return
	}
	if n := strings.Count(v.last, "\n"); v.tty && n > 0 {
		fmt.Fprintf(v.w, "\x1b[%dA\x1b[J", n)
	}
	fmt.Fprint(v.w, text)
	v.last = text
}

func renderPlan(w io.Writer, answers []admin.CitusAnswer) {
	for _, a := range answers {
		if len(a.Moves) == 0 {
			fmt.Fprintf(w, "%s: nothing has to move\n", a.Database)
			continue
		}
		var rows [][]string
		var all int64
		for _, m := range a.Moves {
			all += m.Bytes
			rows = append(rows, []string{m.Table, fmt.Sprint(m.Shard), size(m.Bytes), m.From.String(), m.To.String()})
		}
		grid(w, fmt.Sprintf("%s: %d to move, %s", a.Database, len(a.Moves), size(all)), []string{"Table", "Shard", "Size", "From", "To"}, rows, -1, "Shard", "Size")
	}
}

const barWidth = 30

// progressText is one line with a bar for each database, and one for each shard on its way.
func progressText(answers []admin.CitusAnswer) string {
	var b strings.Builder
	for _, a := range answers {
		j := a.Progress.Job
		if j == nil {
			fmt.Fprintf(&b, "%s: nothing is under way\n", a.Database)
			continue
		}
		did, all := j.Done()
		part := float64(did)
		for _, m := range a.Progress.Moves {
			if m.State == "moving" {
				part += share(m)
			}
		}
		whole := 1.0
		if all > 0 {
			whole = min(part/float64(all), 1)
		}
		full := int(whole * barWidth)
		fmt.Fprintf(&b, "%s: job %d %-9s [%s%s] %3.0f %%, %d of %d moves\n", a.Database, j.ID, j.State,
			strings.Repeat("#", full), strings.Repeat(".", barWidth-full), whole*100, did, all)
		for _, m := range a.Progress.Moves {
			if m.State != "done" {
				b.WriteString("  " + moveText(m) + "\n")
			}
		}
		for _, e := range j.Errors {
			fmt.Fprintf(&b, "  ! %s\n", strings.Join(strings.Fields(e), " "))
		}
	}
	return b.String()
}

func share(m citus.Move) float64 {
	if m.Bytes <= 0 {
		return 0
	}
	return min(float64(m.Copied)/float64(m.Bytes), 1)
}

func moveText(m citus.Move) string {
	out := fmt.Sprintf("%s shard %d, %s -> %s: %s", m.Table, m.Shard, m.From, m.To, m.State)
	if m.State == "moving" {
		out += fmt.Sprintf(", %s of %s", size(m.Copied), size(m.Bytes))
	}
	if m.Detail != "" {
		out += ", " + m.Detail
	}
	return out
}
