package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

const (
	oldVersion = "1.0.0-rollout"
	newVersion = "99.0.0-rollout"
)

type options struct {
	dir, out string
	reduced  bool
	only     string
}

func main() {
	if err := mainErr(); err != nil {
		if _, told := errors.AsType[*exec.ExitError](err); !told {
			fmt.Fprintln(os.Stderr, "rollout:", err)
		}
		os.Exit(1) //nolint:forbidigo // a program's main
	}
}

func mainErr() error {
	o := options{dir: os.Getenv(insideVar)}
	f := flag.NewFlagSet("rollout", flag.ContinueOnError)
	f.StringVar(&o.out, "out", "rollout-out", "directory for the output of playbooks, and for the logs of a run that failed")
	f.BoolVar(&o.reduced, "reduced", false, "three hosts: installation, repetition, upgrade, stop, power cut")
	f.StringVar(&o.only, "only", "", "names of steps, with commas, besides those that make the formation; also of those that the form leaves out")
	if err := f.Parse(os.Args[1:]); err != nil {
		return err
	}
	var err error
	if o.out, err = filepath.Abs(o.out); err != nil {
		return err
	}
	if o.dir == "" {
		return outside(o)
	}
	b, err := newBed(o)
	if err != nil {
		return err
	}
	began := time.Now()
	err = b.run(context.Background(), o)
	b.table.print(os.Stdout, time.Since(began))
	if err != nil {
		b.save(context.Background())
	}
	return err
}

func (o options) suites() []string {
	if o.reduced && !strings.Contains(o.only, "trixie") {
		return []string{"bookworm"}
	}
	return []string{"bookworm", "trixie"}
}

// wants reports whether a step that others do not need is to be done.
func (o options) wants(st step) bool {
	if o.only != "" {
		return slices.Contains(strings.Split(o.only, ","), st.name)
	}
	return st.form == always || st.form == full && !o.reduced
}

// table is what is printed at the end.
type table struct{ rows [][3]string }

func (t *table) row(what string, took time.Duration, says string) {
	t.rows = append(t.rows, [3]string{what, fmt.Sprintf("%.1f s", took.Seconds()), says})
	fmt.Fprintf(os.Stderr, "%s  %-28s %7.1f s  %s\n", time.Now().UTC().Format("15:04:05"), what, took.Seconds(), says)
}

func (t *table) print(w io.Writer, total time.Duration) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\nstep\ttook\tresult")
	for _, r := range t.rows {
		fmt.Fprintln(tw, strings.Join(r[:], "\t"))
	}
	fmt.Fprintf(tw, "all\t%.1f s\t\n", total.Seconds())
	_ = tw.Flush()
}
