package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrLost says that acknowledged writes are missing.
var ErrLost = errors.New("acknowledged writes were lost")

const (
	outageWait = 40 * time.Second
	calm       = time.Second // of writes before and after an outage
)

// Show is the whole demo: up, a table, writes, two outages, the count, and down again.
func (d *Demo) Show(ctx context.Context, keep bool) (err error) {
	d.say("Seven nodes start in %s: a coordinator group of three, two worker groups of two.", d.cfg.Dir)
	// What the demo began it ends, also when it was interrupted; a demo of somebody else's is left alone.
	if d.Exists() {
		return fmt.Errorf("%w in %s: end it with 'matriarch demo down'", ErrExists, d.cfg.Dir)
	}
	defer func() {
		if !d.Exists() || (keep && err == nil) {
			return
		}
		if err != nil {
			d.keepLogs()
		}
		err = errors.Join(err, d.Down(context.WithoutCancel(ctx), false))
	}()
	took, err := d.Up(ctx, false)
	if err != nil {
		return err
	}
	d.say("All nodes are healthy and registered after %.1f s.", took.Seconds())
	if err := d.list(ctx); err != nil {
		return err
	}
	if err := d.outages(ctx); err != nil {
		return err
	}
	if err := d.list(ctx); err != nil {
		return err
	}
	if keep {
		d.say("The nodes keep running. Look at them with 'matriarch demo status', end them with 'matriarch demo down'.")
	}
	return nil
}

// outages kills while a writer writes, and counts.
func (d *Demo) outages(ctx context.Context) error {
	w, err := d.beginWriting(ctx)
	if err != nil {
		return err
	}
	defer w.stop()
	worker, err := d.primary(ctx, 1)
	if err != nil {
		return err
	}
	d.say("Killing the postmaster of %s, primary of worker group 1.", worker.Name)
	gap1, err := d.outage(ctx, w, func() error { return d.Kill(worker.Name, "postmaster") })
	if err != nil {
		return err
	}
	d.say("Writes were away for %d ms.", gap1.Milliseconds())
	coordinator, err := d.primary(ctx, 0)
	if err != nil {
		return err
	}
	d.say("Killing everything on %s, primary of the coordinator group, in one go.", coordinator.Name)
	gap2, err := d.outage(ctx, w, func() error { return d.Kill(coordinator.Name, "") })
	if err != nil {
		return err
	}
	d.say("Writes were away for %d ms. Starting %s again.", gap2.Milliseconds(), coordinator.Name)
	if err := d.Start(coordinator.Name); err != nil {
		return err
	}
	if _, err := d.waitHealthy(ctx, time.Now()); err != nil {
		return err
	}
	w.stop()
	t, err := w.tally(ctx)
	if err != nil {
		return err
	}
	d.say("Write gap after the killed worker postmaster:  %5d ms", gap1.Milliseconds())
	d.say("Write gap after the killed coordinator node:   %5d ms", gap2.Milliseconds())
	d.say("acknowledged %d, present %d, lost %d", t.Acknowledged, t.Present, t.Lost)
	if t.Unknown > 0 {
		d.say("(%d further inserts ended without an answer; %d of them are there. Both is right.)", t.Unknown, t.UnknownPresent)
	}
	if t.Lost > 0 || t.Strange > 0 {
		return fmt.Errorf("%w: %d of %d are missing, %d rows are there that nobody wrote", ErrLost, t.Lost, t.Acknowledged, t.Strange)
	}
	return nil
}

// beginWriting makes the table and starts the writer.
func (d *Demo) beginWriting(ctx context.Context) (*writer, error) {
	dsn, err := d.dsn()
	if err != nil {
		return nil, err
	}
	citus, err := createTable(ctx, dsn)
	if err != nil {
		return nil, err
	}
	if strings.Contains(strings.ToLower(citus), "stand") {
		d.say("NOTE: this machine has no Citus. Its stand-in for tests is in use: %s", citus)
	} else {
		d.say("Citus is %s.", citus)
	}
	d.say("A distributed table is there; a client inserts a row every %s through the coordinator.", writeEvery)
	w := startWriter(ctx, dsn)
	if err := w.waitWriting(ctx, int(calm/writeEvery), outageWait); err != nil {
		w.stop()
		return nil, err
	}
	return w, nil
}

// outage lets something happen and waits until writes have been calm again and the formation can stand the next blow.
func (d *Demo) outage(ctx context.Context, w *writer, strike func() error) (time.Duration, error) {
	from := time.Now()
	if err := strike(); err != nil {
		return 0, err
	}
	// Acknowledgements under way when the blow fell may still arrive.
	if !sleep(ctx, 100*time.Millisecond) {
		return 0, ctx.Err()
	}
	if err := w.waitWriting(ctx, int(calm/writeEvery), outageWait); err != nil {
		return 0, err
	}
	gap := w.gap(from)
	return gap, d.waitRecovered(ctx)
}

// waitRecovered waits until every group has its primary, and one standby that confirms if it has one that lives.
func (d *Demo) waitRecovered(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthyWait)
	defer cancel()
	var last string
	err := every(ctx, look, func() (bool, error) {
		_, f, err := d.formation(ctx)
		if err != nil {
			return false, nil //nolint:nilerr // asked again
		}
		silent := 0
		for _, m := range f.Members {
			if m.Silent {
				silent++
			}
		}
		for _, g := range f.Groups {
			if !g.Open || (len(g.Joint) > 0) || (g.Degraded && silent == 0) {
				last = fmt.Sprintf("group %d: %s", g.ID, g.Reason)
				return false, nil
			}
		}
		return f.Metadata != nil && f.Metadata.Synced, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the formation has not recovered after %s: %s", healthyWait, last)
	}
	return err
}

func (d *Demo) list(ctx context.Context) error {
	return again(ctx, func(ctx context.Context) error {
		_, f, err := d.formation(ctx)
		if err == nil {
			d.cfg.List(d.cfg.Out, f)
		}
		return err
	})
}

func (d *Demo) say(format string, args ...any) { fmt.Fprintf(d.cfg.Out, format+"\n", args...) }
