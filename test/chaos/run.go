package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
)

const (
	convergeLimit = 60 * time.Second
	connectLimit  = 30 * time.Second
	readLimit     = 60 * time.Second // of what is in a node's table
	checkLimit    = 10 * time.Second // a register
)

// load is what clients do with one group, and what they saw. Through the coordinator they only add numbers, to a distributed table.
type load struct {
	group     int
	through   bool
	numbers   *numbers
	registers registers
	sampler   sampler
}

// verdict is what a run showed.
type verdict struct {
	loads      []*load
	converged  time.Duration
	struck     []struck
	stall      time.Duration // the machine's own worst
	violations []string
}

func (v *verdict) bad(format string, args ...any) {
	v.violations = append(v.violations, fmt.Sprintf(format, args...))
}

func (l *load) String() string {
	if l.through {
		return "through the coordinator"
	}
	return fmt.Sprintf("group %d", l.group)
}

func (l *load) table() string {
	if l.through {
		return "chaos_distributed"
	}
	return "chaos_set"
}

// slowest is the longest time without an acknowledged number.
func (v *verdict) slowest() time.Duration {
	var out time.Duration
	for _, l := range v.loads {
		out = max(out, l.numbers.gap)
	}
	return out
}

func (v *verdict) summary(o options, faults int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, early failover %t, %d faults, converged after %s", o.what(), o.total, o.early, faults, v.converged.Round(100*time.Millisecond))
	for _, l := range v.loads {
		fmt.Fprintf(&b, "; %s: %d numbers acknowledged of %d, longest gap %s from %s", l, len(l.numbers.acked), len(l.numbers.attempted), l.numbers.gap.Round(10*time.Millisecond), l.numbers.gapFrom.UTC().Format("15:04:05"))
		if !l.through {
			fmt.Fprintf(&b, ", %d operations on registers, %d of %d samples acknowledged", len(l.registers.ops), len(l.sampler.acks), l.sampler.tries)
		}
	}
	fmt.Fprintf(&b, "; the machine stalled for %s at worst; %d violations", v.stall.Round(10*time.Millisecond), len(v.violations))
	return b.String()
}

func (f *formation) run(ctx context.Context, o options, net *network, faults []fault) (*verdict, error) {
	v := &verdict{}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := f.up(ctx); err != nil {
		return v, err
	}
	for _, g := range groups() {
		if err := f.prepare(ctx, g, o.early); err != nil {
			return v, err
		}
		v.loads = append(v.loads, &load{group: g, numbers: newNumbers()})
	}
	if f.citus {
		if err := f.exec(ctx, 0, "CREATE TABLE chaos_distributed (n bigint PRIMARY KEY)", "SELECT create_distributed_table('chaos_distributed', 'n', shard_count => 8)"); err != nil {
			return v, err
		}
		v.loads = append(v.loads, &load{through: true, numbers: newNumbers()})
	}
	lctx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	stall := worstStall(lctx)
	var clients sync.WaitGroup
	for _, l := range v.loads {
		f.start(lctx, l, o, &clients)
	}
	f.trace.note("up, %d faults follow", len(faults))
	n := &nemesis{f: f, net: net, trace: f.trace, primary: func(g int) int { return v.loads[g].sampler.last(members(g)[0]) }}
	if err := n.run(ctx, faults); err != nil {
		v.bad("nemesis: %v", err)
	}
	v.struck = n.struck
	f.trace.note("everything is mended")
	took, err := f.converge(ctx, convergeLimit)
	if v.converged = took; err != nil {
		v.bad("convergence: %v", err)
	}
	stopLoad()
	clients.Wait()
	v.stall = <-stall
	for _, l := range v.loads {
		f.check(ctx, l, v)
	}
	return v, nil
}

func (f *formation) prepare(ctx context.Context, group int, early bool) error {
	if !early {
		if _, err := f.ask(ctx, 10*time.Second, "config", "set", "--group", fmt.Sprint(group), "early_failover=false"); err != nil {
			return err
		}
	}
	return f.exec(ctx, group, tables...)
}

// exec runs statements on a group's primary.
func (f *formation) exec(ctx context.Context, group int, statements ...string) error {
	var conn *pgx.Conn
	err := until(ctx, connectLimit, func() (err error) {
		conn, err = pgx.Connect(ctx, f.dsn("read-write", members(group)...))
		return err
	})
	if err != nil {
		return fmt.Errorf("connect to group %d: %w", group, err)
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("group %d: %s: %w", group, sql, err)
		}
	}
	return nil
}

// start has clients add numbers, three work on registers and a sampler look at each node.
func (f *formation) start(ctx context.Context, l *load, o options, wg *sync.WaitGroup) {
	began, dsn, next := f.trace.began, f.dsn("read-write", members(l.group)...), &atomic.Int64{}
	adders := 1
	if l.through {
		adders = len(groups())
	}
	for range adders {
		wg.Go(func() { l.numbers.add(ctx, dsn, l.table(), next) })
	}
	if l.through {
		return
	}
	for c := range 3 {
		wg.Go(func() {
			l.registers.work(ctx, dsn, c, !o.early, began, rand.New(rand.NewPCG(o.seed, uint64(100+10*l.group+c)))) //nolint:gosec // replayable on purpose
		})
	}
	for _, i := range members(l.group) {
		wg.Go(func() { l.sampler.sample(ctx, f.dsn("any", i), i, began, !o.early) })
	}
}

// check holds what is in the tables of every node against what clients were told; a distributed one is looked at through the coordinator.
func (f *formation) check(ctx context.Context, l *load, v *verdict) {
	look := map[string]string{}
	if l.through {
		look[l.String()] = f.dsn("read-write", members(l.group)...)
	} else {
		for _, i := range members(l.group) {
			look[fmt.Sprintf("%s, %s", l, host(i))] = f.dsn("any", i)
		}
	}
	for where, dsn := range look {
		err := until(ctx, readLimit, func() error {
			present, err := present(ctx, dsn, l.table())
			if err != nil {
				return err
			}
			lost, strange := lostNumbers(l.numbers.attempted, l.numbers.acked, present)
			if len(lost)+len(strange) > 0 {
				return fmt.Errorf("%d acknowledged numbers are missing (%v), %d were never added (%v)", len(lost), lost[:min(len(lost), 20)], len(strange), strange[:min(len(strange), 20)])
			}
			return nil
		})
		if err != nil {
			v.bad("%s: %v", where, err)
		}
	}
	if len(l.numbers.acked) == 0 || !l.through && len(l.sampler.acks) == 0 {
		v.bad("%s: nothing was ever acknowledged", l)
	}
	for _, s := range twoPrimaries(l.sampler.acks) {
		v.bad("%s: %s", l, s)
	}
	switch result, worst := linearizable(l.registers.ops, checkLimit); result {
	case porcupine.Illegal:
		v.bad("%s: a register is not linearizable:\n%s", l, history(worst))
	case porcupine.Unknown:
		f.trace.note("%s: registers undecided after %s", l, checkLimit)
	}
}

func present(ctx context.Context, dsn, table string) (map[int64]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, "SELECT n FROM "+table)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("the set is empty")
	}
	out := map[int64]bool{}
	for _, n := range all {
		out[n] = true
	}
	return out, nil
}
