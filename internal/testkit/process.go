package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one that belongs to a directory.
type process struct {
	pid  int
	args string // command line with spaces
	cwd  string
}

// processesOf lists the living processes that work in dir or name it in their command line. Zombies are not among them.
func processesOf(dir string) []process {
	var out []process
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue
		}
		cwd, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		args := string(bytes.ReplaceAll(bytes.TrimRight(cmdline, "\x00"), []byte{0}, []byte{' '}))
		if within(cwd, dir) || mentions(args, dir) {
			out = append(out, process{pid: pid, args: args, cwd: cwd})
		}
	}
	return out
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// mentions finds dir as a whole path, not as the beginning of another: n1 is not n10.
func mentions(args, dir string) bool {
	for rest := args; ; {
		i := strings.Index(rest, dir)
		if i < 0 {
			return false
		}
		rest = rest[i+len(dir):]
		if rest == "" || strings.ContainsAny(rest[:1], "/ .") {
			return true
		}
	}
}

// killTogether freezes all, then kills all: what a power cut does to a host.
func killTogether(ps []process) {
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, p := range ps {
			_ = syscall.Kill(p.pid, sig)
		}
	}
	for _, p := range ps {
		_ = gone(p.pid, 5*time.Second)
	}
}

// gone waits until a process has ended; one that waits to be reaped has.
func gone(pid int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // nothing to read: nothing there
		i := bytes.LastIndexByte(stat, ')')
		if i < 0 || i+2 >= len(stat) || stat[i+2] == 'Z' || stat[i+2] == 'X' {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d is still there after %s", pid, limit)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// postmaster reads the pid of the server that works in a data directory; 0 when none does.
func postmaster(dataDir string) int {
	b, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return 0
	}
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil || cwd != dataDir {
		return 0
	}
	return pid
}

func signalTo(pid int, sig syscall.Signal) error {
	if pid <= 0 {
		return errors.New("no such process")
	}
	return syscall.Kill(pid, sig)
}
