package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options come from flags; the Makefile passes its variables.
type options struct {
	exe, dir, out, pgBin string
	runs                 int
	scenarios            []scenario
	peers                []string
	coord                []string
	log                  *os.File
}

func main() {
	if err := mainErr(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:forbidigo // a program's main
	}
}

func mainErr() error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	if ran, err := sandbox(); ran || err != nil {
		if _, told := errors.AsType[*exec.ExitError](err); told {
			os.Exit(1) //nolint:forbidigo // the inner program has said why
		}
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := untilReleased(ctx)
	defer cancel()
	return bench(ctx, o)
}

func parse(args []string) (options, error) {
	o := options{log: os.Stderr}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.exe, "matriarch", "bin/matriarch", "the built program")
	f.StringVar(&o.dir, "dir", "/var/tmp/matriarch-bench", "directory for the formations; removed at the end")
	f.StringVar(&o.out, "out", "bench-out", "directory for results.json, table.txt and the pictures")
	f.StringVar(&o.pgBin, "pg-bin", os.Getenv("MATRIARCH_PG_BIN"), "directory of PostgreSQL's programs; empty: the distribution's newest")
	f.IntVar(&o.runs, "runs", 5, "runs of each scenario")
	names := f.String("scenarios", "", "some of them, with commas; empty: all")
	peers := f.String("peer", "", "compare with: patroni")
	coord := f.String("coordinator", "", "host:port,... through which Matriarch's clients reach the coordinator's primary (a proxy); empty: its nodes")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	if o.scenarios, err = choose(*names); err != nil {
		return o, err
	}
	if o.runs < 1 {
		return o, fmt.Errorf("runs %d: want at least 1", o.runs)
	}
	comma := func(r rune) bool { return r == ',' || r == ' ' }
	o.peers, o.coord = strings.FieldsFunc(*peers, comma), strings.FieldsFunc(*coord, comma)
	if i := slices.IndexFunc(o.peers, func(p string) bool { return p != "patroni" }); i >= 0 {
		return o, fmt.Errorf("there is no peer %q: there is patroni", o.peers[i])
	}
	if o.pgBin == "" {
		found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
		if len(found) == 0 {
			return o, errors.New("no PostgreSQL in /usr/lib/postgresql: name its programs' directory with -pg-bin or MATRIARCH_PG_BIN")
		}
		o.pgBin = found[len(found)-1]
	}
	for _, path := range []*string{&o.exe, &o.dir, &o.out} {
		if *path, err = filepath.Abs(*path); err != nil {
			return o, err
		}
	}
	return o, nil
}

// bench plays all scenarios with every system in turn and writes what it has, also when it was interrupted.
func bench(ctx context.Context, o options) error {
	unlock, err := occupy(o.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	res := &results{At: time.Now().UTC(), Runs: o.runs, Machine: describeMachine(o.pgBin), Systems: map[string]string{}}
	var errs []error
	for _, name := range append([]string{"matriarch"}, o.peers...) {
		f, err := newFormation(name, o)
		if err == nil {
			err = playAll(ctx, o, name, f, res)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(append(errs, writeResults(o, res))...)
}

func newFormation(name string, o options) (formation, error) {
	if name == "patroni" {
		return newPatroni(o)
	}
	return newMatriarch(o), nil
}

// occupy takes the directory for us alone and throws away what an earlier run left in it.
func occupy(dir string) (func(), error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("another bench runs in %s: name another directory with -dir, or wait", dir)
	}
	return func() { _ = os.RemoveAll(dir); _ = lock.Close() }, nil
}

// playAll goes through the scenarios again and again, so that what changes on the machine meanwhile meets them all. A formation in which a
// run failed is replaced.
func playAll(ctx context.Context, o options, name string, f formation, res *results) (err error) {
	defer func() { err = errors.Join(err, f.down(context.WithoutCancel(ctx))) }()
	if res.Systems[name], err = f.describe(ctx); err != nil {
		return err
	}
	var st *stage
	for n := 1; n <= o.runs; n++ {
		for _, sc := range o.scenarios {
			if st == nil {
				if st, err = newStage(ctx, o, name, f); err != nil {
					return err
				}
				res.citus(st.citus)
			}
			r, err := st.play(ctx, sc, n)
			if err != nil {
				r.Failed, r.Clients = err.Error(), nil
				fmt.Fprintf(o.log, "%s, %s, run %d FAILED: %v (logs in %s)\n", name, sc.Title, n, err, keepLogs(o, f, r))
				st = nil
			} else {
				fmt.Fprintln(o.log, r.line(sc))
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			res.Each = append(res.Each, r)
		}
	}
	return nil
}

func newStage(ctx context.Context, o options, name string, f formation) (*stage, error) {
	began := time.Now()
	if err := f.down(ctx); err != nil {
		return nil, err
	}
	if err := f.up(ctx); err != nil {
		return nil, fmt.Errorf("%w (logs in %s)", err, keepLogs(o, f, run{System: name, Scenario: "up"}))
	}
	st := &stage{formation: f, name: name, lastHit: map[int]time.Time{}}
	if name == "matriarch" {
		st.coord = o.coord
	}
	dsn, err := f.dsn(f.hosts(coordinator))
	if err != nil {
		return nil, err
	}
	if st.slots, st.citus, err = createTables(ctx, dsn); err != nil {
		return nil, err
	}
	fmt.Fprintf(o.log, "%s: seven nodes are up after %.1f s\n", name, time.Since(began).Seconds())
	return st, nil
}

// keepLogs copies them to the results.
func keepLogs(o options, f formation, r run) string {
	dir := filepath.Join(o.out, fmt.Sprintf("failed-%s-%s-%d", r.System, r.Scenario, r.N))
	for _, file := range f.logs() {
		b, err := os.ReadFile(file)
		if err == nil && os.MkdirAll(dir, 0o755) == nil {
			_ = os.WriteFile(filepath.Join(dir, filepath.Base(filepath.Dir(file))+".log"), b, 0o644)
		}
	}
	return dir
}

func writeResults(o options, res *results) error {
	res.summarise(o.scenarios)
	b, err := json.MarshalIndent(res, "", " ")
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(o.out, "results.json"), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	for _, sc := range o.scenarios {
		if err := drawScenario(o.out, sc, res); err != nil {
			return err
		}
	}
	text := res.table(o.scenarios)
	if err := os.WriteFile(filepath.Join(o.out, "table.txt"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	_, err = os.Stdout.WriteString(text)
	return err
}
