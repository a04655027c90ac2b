package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

type options struct {
	exe, dir, out, pgBin string
	total                time.Duration
	seed                 uint64
	early, planOnly      bool
}

func main() {
	if err := mainErr(); err != nil {
		if _, told := errors.AsType[*exec.ExitError](err); !told {
			fmt.Fprintln(os.Stderr, "chaos:", err)
		}
		os.Exit(1) //nolint:forbidigo // a program's main
	}
}

func mainErr() error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	faults := plan(o.seed, o.total, o.without())
	if o.planOnly {
		for _, f := range faults {
			fmt.Fprintln(os.Stdout, f)
		}
		return nil
	}
	if ran, err := sandbox(); ran || err != nil {
		return err
	}
	return play(context.Background(), o, faults)
}

func parse(args []string) (options, error) {
	o := options{dir: os.Getenv(insideVar)}
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	minutes := f.Float64("minutes", 2, "how long faults are made")
	f.Uint64Var(&o.seed, "seed", 1, "of the faults")
	f.BoolVar(&o.early, "early", true, "early failover; without it the sampler writes with synchronous_commit = local, and what freezes server and sentinel together is left out")
	f.BoolVar(&o.planOnly, "plan", false, "print the faults of the seed and end")
	f.StringVar(&o.exe, "matriarch", "bin/matriarch", "the built program")
	f.StringVar(&o.out, "out", "chaos-out", "directory for the trace, and for the logs of a run that failed")
	f.StringVar(&o.pgBin, "pg-bin", os.Getenv("MATRIARCH_PG_BIN"), "directory of PostgreSQL's programs; empty: the distribution's newest")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.total = time.Duration(*minutes * float64(time.Minute))
	o.out = filepath.Join(o.out, fmt.Sprintf("seed-%d", o.seed))
	var err error
	for _, path := range []*string{&o.exe, &o.out} {
		if *path, err = filepath.Abs(*path); err != nil {
			return o, err
		}
	}
	return o, nil
}

func (o options) without() map[string]bool {
	if o.early {
		return nil
	}
	return frozen
}

// trace tells what happened when.
type trace struct {
	mu    sync.Mutex
	began time.Time
	file  *os.File
}

func (t *trace) note(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	line := fmt.Sprintf("%s %8.3fs %s\n", now.UTC().Format("15:04:05.000"), now.Sub(t.began).Seconds(), fmt.Sprintf(format, args...))
	_, _ = t.file.WriteString(line)
	_, _ = os.Stderr.WriteString(line)
}

// play is one run, from nothing to the verdict.
func play(ctx context.Context, o options, faults []fault) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil { //nolint:gosec // for people to read
		return err
	}
	file, err := os.Create(filepath.Join(o.out, "trace.txt"))
	if err != nil {
		return err
	}
	defer file.Close()
	tr := &trace{began: time.Now(), file: file}
	net, err := newNetwork(len(groupOf))
	if err != nil {
		return err
	}
	f, err := newFormation(o, tr)
	if err != nil {
		return err
	}
	v, err := f.run(ctx, o, net, faults)
	if err != nil {
		v.bad("%v", err)
	}
	tr.note("%s", v.summary(o, len(faults)))
	if len(v.violations) == 0 {
		return nil
	}
	for _, b := range v.violations {
		tr.note("FAILED: %s", b)
	}
	return errors.Join(fmt.Errorf("seed %d failed: see %s", o.seed, o.out), f.saveLogs(o.out))
}
