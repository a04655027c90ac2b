package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"matriarch/internal/admin"
)

const (
	answerWait  = 30 * time.Second
	healthyWait = 90 * time.Second
	look        = 200 * time.Millisecond
)

// progress shows one line: rewritten on a terminal, elsewhere printed when it has changed.
type progress struct {
	w     io.Writer
	tty   bool
	began time.Time
	last  string
	width int
}

func newProgress(w io.Writer, began time.Time) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, tty: ok && term.IsTerminal(int(f.Fd())), began: began}
}

func (p *progress) show(text string) {
	if !p.tty && text == p.last {
		return
	}
	p.last = text
	line := fmt.Sprintf("%5.1f s  %s", time.Since(p.began).Seconds(), text)
	if !p.tty {
		fmt.Fprintln(p.w, line)
		return
	}
	line = line[:min(len(line), 110)]
	fmt.Fprintf(p.w, "\r%-*s", p.width, line)
	p.width = len(line)
}

func (p *progress) end() {
	if p.tty && p.width > 0 {
		fmt.Fprintln(p.w)
	}
}

// again asks until nothing is wrong: a leader or a primary may just be changing.
func again(ctx context.Context, ask func(context.Context) error) error {
	wait, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	var last error
	if err := every(wait, look, func() (bool, error) { last = ask(wait); return last == nil, nil }); err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("asked for %s: %w", answerWait, last))
	}
	return nil
}

// waitAnswer waits until the first node leads, so that others can join.
func (d *Demo) waitAnswer(ctx context.Context, began time.Time) error {
	p := newProgress(d.cfg.Out, began)
	defer p.end()
	p.show("first node starts")
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	var last error
	err := every(ctx, look/4, func() (bool, error) {
		st, _, err := d.formation(ctx)
		last = err
		return err == nil && st.Raft.Leads, d.ended(d.Nodes()[0])
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the first node does not answer after %s: %w: see %s", answerWait, last, d.Nodes()[0].logFile())
	}
	return err
}

// ended is an error when the node's agent runs no more, with the last line of its log.
func (d *Demo) ended(n Node) error {
	all, err := processes()
	if err != nil {
		return err
	}
	if n.pids(all).Agent != 0 {
		return nil
	}
	return fmt.Errorf("%s has ended: %s (all of it: %s)", n.Name, lastLine(n.logFile()), n.logFile())
}

func lastLine(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// waitHealthy waits until every node runs, every group has its primary and standbys, and Citus knows them.
func (d *Demo) waitHealthy(ctx context.Context, began time.Time) (time.Duration, error) {
	p := newProgress(d.cfg.Out, began)
	defer p.end()
	ctx, cancel := context.WithTimeout(ctx, healthyWait)
	defer cancel()
	c, err := d.client()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	last := "no node answers"
	err = every(ctx, look, func() (bool, error) {
		st, err := c.Formation(ctx)
		if err != nil {
			p.show("waiting for an answer")
			return false, nil //nolint:nilerr // nodes may be silent while they start
		}
		f := admin.NewFormation(st)
		if len(f.Troubles) > 0 {
			last = strings.Join(f.Troubles, "; ")
		}
		healthy := f.Healthy && len(f.Members) == len(d.Nodes()) && len(f.Groups) == 3
		p.show(summary(f, len(d.Nodes()), healthy))
		return healthy, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return 0, fmt.Errorf("the formation is not healthy after %s: %s; logs are in %s/*/matriarch.log", healthyWait, last, d.cfg.Dir)
	}
	return time.Since(began), err
}

// summary is the progress in one line.
func summary(f admin.Formation, nodes int, healthy bool) string {
	open, streaming, silent := 0, 0, 0
	for _, g := range f.Groups {
		if g.Open {
			open++
		}
	}
	for _, m := range f.Members {
		switch {
		case m.Silent:
			silent++
		case m.Role == admin.RoleQuorumStandby && m.State == "streaming":
			streaming++
		}
	}
	text := fmt.Sprintf("%d of %d nodes, %d of 3 groups open, %d of %d standbys confirm commits", len(f.Members)-silent, nodes, open, streaming, nodes-3)
	if healthy {
		return text + ", registered with Citus: healthy"
	}
	return text
}
