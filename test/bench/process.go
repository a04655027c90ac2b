package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one of this machine's, as /proc shows it.
type process struct {
	pid, parent int
	args        []string
	cwd         string
}

// processes reads those that match; the own one, those that end meanwhile and zombies are left out.
func processes(match func(process) bool) ([]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() || pid == 1 {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 2 || fields[0] == "Z" {
			continue
		}
		p := process{pid: pid}
		p.parent, _ = strconv.Atoi(fields[1])
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		p.args = strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		p.cwd, _ = os.Readlink(filepath.Join(dir, "cwd"))
		if match(p) {
			out = append(out, p)
		}
	}
	return out, nil
}

func sigkill(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

// freezeAll stops processes and lets them go on later.
func freezeAll(ctx context.Context, hold time.Duration, match func(process) bool) error {
	all, err := processes(match)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return errors.New("no such process runs")
	}
	for _, p := range all {
		if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
			return fmt.Errorf("stop process %d: %w", p.pid, err)
		}
		defer func() { _ = syscall.Kill(p.pid, syscall.SIGCONT) }()
	}
	sleep(ctx, hold)
	return ctx.Err()
}

// killUntilGone kills until nothing matches any more.
func killUntilGone(match func(process) bool) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		left, err := processes(match)
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes do not end, the first is %d", len(left), left[0].pid)
		}
		for _, p := range left {
			if err := sigkill(p.pid); err != nil {
				return err
			}
		}
	}
}

// killPostmaster kills the one of a server's processes that is the parent of the others.
func killPostmaster(match func(process) bool) error {
	all, err := processes(match)
	if err != nil {
		return err
	}
	member := map[int]bool{}
	for _, p := range all {
		member[p.pid] = true
	}
	for _, p := range all {
		if !member[p.parent] {
			return sigkill(p.pid)
		}
	}
	return errors.New("no postmaster runs")
}
