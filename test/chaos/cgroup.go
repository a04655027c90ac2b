package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const cgroupPrefix = "matriarch-chaos-"

// cgroup holds all processes of a host, so that they freeze and die at one moment.
type cgroup string

// cgroupRoot is where cgroups of version 2 are; empty: nowhere that we may make one.
func cgroupRoot() string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 5 || !strings.Contains(sc.Text(), " - cgroup2 ") {
			continue
		}
		try := filepath.Join(fields[4], fmt.Sprintf("%stry-%d", cgroupPrefix, os.Getpid()))
		if os.Mkdir(try, 0o755) != nil { //nolint:gosec // as the kernel does
			continue
		}
		_, err := os.Stat(filepath.Join(try, "cgroup.kill"))
		if os.Remove(try) == nil && err == nil {
			return fields[4]
		}
	}
	return ""
}

func newCgroup(root, name string) (cgroup, error) {
	g := cgroup(filepath.Join(root, name))
	if err := os.Mkdir(string(g), 0o755); err != nil { //nolint:gosec // as the kernel does
		return "", fmt.Errorf("cgroup: %w", err)
	}
	return g, nil
}

func (g cgroup) write(file, what string) error {
	return os.WriteFile(filepath.Join(string(g), file), []byte(what), 0o644) //nolint:gosec // the kernel's file
}

func (g cgroup) freeze() (func() error, error) {
	return func() error { return g.write("cgroup.freeze", "0") }, g.write("cgroup.freeze", "1")
}

func (g cgroup) kill() error {
	if g == "" {
		return nil
	}
	return g.write("cgroup.kill", "1")
}

// start is the command line that runs a program inside. A clone straight into it would not do: some kernels kill what enters a cgroup that way
// once cgroup.kill was used on it.
func (g cgroup) start(args ...string) []string {
	if g == "" {
		return args
	}
	return append([]string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, string(g)}, args...)
}

// dropCgroups removes those of a run that is over, and what dead runs left.
func dropCgroups(root, run string) {
	if root == "" {
		return
	}
	all, _ := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
	for _, dir := range all {
		name := strings.TrimPrefix(filepath.Base(dir), cgroupPrefix)
		owner, _, _ := strings.Cut(name, "-")
		pid, err := strconv.Atoi(owner)
		if err != nil || owner != run && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		for range 100 { // the dead leave a moment after they were killed
			if err := os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}
