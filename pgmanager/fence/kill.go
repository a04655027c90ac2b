package fence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Backoff between two looks at what a kill has left.
const (
	firstNap   = 2 * time.Millisecond
	longestNap = 50 * time.Millisecond
)

// Processes lists the pids whose working directory is dataDir, which is where PostgreSQL's processes stay. The caller must be allowed to look at
// them: root, or their own user. It is for an agent whose sentinel does not answer; otherwise the sentinel knows better.
func Processes(dataDir string) ([]int, error) {
	ps, err := inDir(dataDir)
	if err != nil {
		return nil, err
	}
	out := make([]int, 0, len(ps))
	for _, p := range ps {
		out = append(out, p.pid)
	}
	return out, nil
}

// KillAll kills every process of the PostgreSQL in dataDir, whoever their parent is, and returns nil once none is left. When ctx ends first,
// the error tells how many are.
func KillAll(ctx context.Context, dataDir string) error {
	nap := firstNap
	for {
		left, err := sweep(dataDir)
		if left == 0 && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill PostgreSQL in %s: %d processes left: %w", dataDir, left, errors.Join(ctx.Err(), err))
		case <-time.After(nap):
			nap = min(2*nap, longestNap)
		}
	}
}

// sweep kills what it finds in dir and returns how many processes that were. The postmaster is frozen first: it could fork between the look and
// the kill, and its death would send signals to children that are better killed.
func sweep(dir string) (found int, err error) {
	ps, err := inDir(dir)
	if err != nil || len(ps) == 0 {
		return 0, err
	}
	var errs []error
	for _, p := range roots(ps) {
		errs = append(errs, p.signal(unix.SIGSTOP))
	}
	again, err := inDir(dir)
	if err != nil {
		return len(ps), err
	}
	heads := roots(again)
	for _, p := range again {
		if _, head := heads[p.pid]; !head {
			errs = append(errs, p.signal(unix.SIGKILL))
		}
	}
	for _, p := range heads {
		errs = append(errs, p.signal(unix.SIGKILL))
	}
	return len(ps), errors.Join(errs...)
}

// roots returns those whose parent is not in the list: the postmaster, or orphans of one.
func roots(ps []proc) map[int]proc {
	listed := map[int]bool{}
	for _, p := range ps {
		listed[p.pid] = true
	}
	out := map[int]proc{}
	for _, p := range ps {
		if !listed[p.ppid] {
			out[p.pid] = p
		}
	}
	return out
}
