package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"
)

type options struct {
	exe, dir, out, pgBin   string
	scenario               string
	total                  time.Duration
	seed                   uint64
	early, citus, planOnly bool
}

// init keeps the first thread in the network that it began in, since that one counts as the process's: goroutines that enter another network run
// on other threads. A fault would stop or kill this program with the host that it seems to belong to.
func init() { runtime.LockOSThread() }

func main() {
	if err := mainErr(os.Args[1:]); err != nil {
		if _, told := errors.AsType[*exec.ExitError](err); !told {
			fmt.Fprintln(os.Stderr, "chaos:", err)
		}
		code := 1
		if errors.Is(err, errStalled) {
			code = stalled
		}
		os.Exit(code) //nolint:forbidigo // a program's main
	}
}

func mainErr(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.scenario == "list" {
		fmt.Fprint(os.Stdout, listScenarios())
		return nil
	}
	if o.planOnly {
		for _, f := range plan(o.seed, o.total, without(o.early, nil)) {
			fmt.Fprintln(os.Stdout, f)
		}
		return nil
	}
	if o.scenario == "all" {
		return playAll(args)
	}
	if ran, err := again(args); ran || err != nil {
		return err
	}
	ctx, cancel := whileWanted()
	defer cancel()
	return play(ctx, o)
}

// playAll plays the scenarios one after the other.
func playAll(args []string) error {
	var errs []error
	for _, s := range scenarios {
		_, err := again(append(slices.Clone(args), "-scenario", s.name))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func parse(args []string) (options, error) {
	o := options{dir: os.Getenv(insideVar)}
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	minutes := f.Float64("minutes", 2, "how long faults are made")
	f.Uint64Var(&o.seed, "seed", 1, "of the faults")
	early := f.String("early", "auto", "early failover: on, off, or auto: on with even seeds. Without it local writes and plain reads are checked, too, and what freezes server and sentinel together is left out")
	f.StringVar(&o.scenario, "scenario", "", "play this incident instead of random faults; all: each of them, list: tell which there are")
	f.BoolVar(&o.citus, "citus", true, "with Citus, and clients that enter through the coordinator")
	f.BoolVar(&o.planOnly, "plan", false, "print the faults of the seed and end")
	f.StringVar(&o.exe, "matriarch", "bin/matriarch", "the built program")
	f.StringVar(&o.out, "out", "chaos-out", "directory for the trace, and for the logs of a run that failed")
	f.StringVar(&o.pgBin, "pg-bin", os.Getenv("MATRIARCH_PG_BIN"), "directory of PostgreSQL's programs; empty: the distribution's newest")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch *early {
	case "on", "off":
		o.early = *early == "on"
	case "auto":
		o.early = o.seed%2 == 0
	default:
		return o, fmt.Errorf("-early %q must be on, off or auto", *early)
	}
	o.total = time.Duration(*minutes * float64(time.Minute))
	o.out = filepath.Join(o.out, fmt.Sprintf("seed-%d", o.seed))
	if o.scenario != "" && o.scenario != "list" && o.scenario != "all" {
		s, err := scenarioNamed(o.scenario)
		if err != nil {
			return o, err
		}
		o.early, o.total, o.out = s.early, s.lasts(), filepath.Join(filepath.Dir(o.out), s.name)
	}
	var err error
	for _, path := range []*string{&o.exe, &o.out} {
		if *path, err = filepath.Abs(*path); err != nil {
			return o, err
		}
	}
	return o, nil
}

// faults are those of the scenario, or of the seed.
func (o options) faults(m machine) ([]fault, scenario, error) {
	if o.scenario == "" {
		return plan(o.seed, o.total, without(o.early, m.lacks())), scenario{}, nil
	}
	s, err := scenarioNamed(o.scenario)
	leave := without(o.early, m.lacks())
	for _, f := range s.faults {
		if leave[f.kind] {
			err = fmt.Errorf("scenario %s needs %q: %s", s.name, f.kind, m)
		}
	}
	return s.faults, s, err
}

func (o options) what() string {
	if o.scenario != "" {
		return "scenario " + o.scenario
	}
	return fmt.Sprintf("seed %d", o.seed)
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

// tellGap is the gap of writes from which on the logs are kept.
const tellGap = 10 * time.Second

// play is one run, from nothing to the verdict.
func play(ctx context.Context, o options) error {
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
	m := thisMachine(o.dir)
	tr.note("%s", m)
	faults, s, err := o.faults(m)
	if err != nil {
		return err
	}
	f, err := newFormation(o, m, tr)
	if err != nil {
		return err
	}
	v, err := f.run(ctx, o, net, faults)
	if err != nil {
		v.bad("%v", err)
	}
	unsure := s.judge(v)
	tr.note("%s", v.summary(o, len(faults)))
	if s.measured {
		tr.note("%s", v.figures())
	}
	if len(v.violations) == 0 {
		if unsure != nil {
			return unsure
		}
		if v.slowest() > tellGap {
			return f.saveLogs(o.out)
		}
		return nil
	}
	for _, b := range v.violations {
		tr.note("FAILED: %s", b)
	}
	return errors.Join(fmt.Errorf("%s failed: see %s", o.what(), o.out), f.saveLogs(o.out))
}
