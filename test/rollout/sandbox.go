package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// insideVar names the work directory, for the inner program alone.
const insideVar = "MATRIARCH_ROLLOUT_INSIDE"

const prefix = "matriarch-rollout-"

func root() error {
	if os.Geteuid() != 0 {
		return errors.New("container hosts need root: run it as root")
	}
	for _, tool := range []string{"systemd-nspawn", "mmdebstrap", "ansible-playbook", "ssh", "ssh-keygen", "unshare", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: run deploy/deps-rollout.sh", err)
		}
	}
	return nil
}

// outside prepares what needs the machine's network and runs the program again in namespaces of its own.
func outside(o options) error {
	if err := root(); err != nil {
		return err
	}
	sweep()
	dir, err := os.MkdirTemp("/var/tmp", prefix)
	if err != nil {
		return err
	}
	defer sweep()
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // PostgreSQL's user passes through it
		return err
	}
	for _, suite := range o.suites() {
		out, err := exec.Command("test/rollout/tree.sh", suite).Output() //nolint:noctx // ends with us
		if err != nil {
			return fmt.Errorf("build the tree of %s: %w", suite, err)
		}
		if err := os.Symlink(strings.TrimSpace(string(out)), filepath.Join(dir, suite)); err != nil {
			return err
		}
	}
	for name, version := range map[string]string{"matriarch": oldVersion, "matriarch-new": newVersion} {
		build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-tags", "hashicorpmetrics", "-ldflags", "-s -w -X main.version="+version, //nolint:noctx // ends with us
			"-o", filepath.Join(dir, name), "./cmd/matriarch")
		build.Env, build.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build version %s: %w", version, err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	script := `mkdir -p /run/netns && mount -t tmpfs -o size=1m tmpfs /run/netns && mount -t cgroup2 cgroup2 /sys/fs/cgroup && ip link set lo up && "$0" "$@"; exit $?`
	args := append([]string{"--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "bash", "-c", script, self}, os.Args[1:]...)
	cmd := exec.Command("unshare", args...) //nolint:noctx // a signal to the outer program ends it, too
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}

// cgroupRoot is where the machine keeps the unified hierarchy.
func cgroupRoot() string {
	if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.procs"); err == nil {
		return "/sys/fs/cgroup/unified"
	}
	return "/sys/fs/cgroup"
}

// sweep removes what this run, or one that was killed, left behind. What is in use stays.
func sweep() {
	groups, _ := filepath.Glob(filepath.Join(cgroupRoot(), prefix+"*"))
	for _, g := range groups {
		if events, err := os.ReadFile(filepath.Join(g, "cgroup.events")); err == nil && strings.Contains(string(events), "populated 0") {
			removeCgroup(g)
		}
	}
	dirs, _ := filepath.Glob("/var/tmp/" + prefix + "*")
	for _, d := range dirs {
		if _, err := os.Stat(filepath.Join(cgroupRoot(), filepath.Base(d))); err != nil { // nothing runs on it
			_ = os.RemoveAll(d)
		}
	}
}

// removeCgroup removes an empty cgroup with all below it.
func removeCgroup(dir string) {
	var all []string
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	for _, d := range slices.Backward(all) {
		_ = os.Remove(d)
	}
}
