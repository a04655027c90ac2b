package demo

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
	rss         int64 // kB
	cpu         time.Duration
}

// tick is the unit of CPU times in /proc; Linux has it at 100 Hz on every platform Go runs on.
const tick = 10 * time.Millisecond

// processes reads all of them; those that end meanwhile are left out.
func processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("read processes: %w", err)
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

func readProcess(pid int) (process, bool) {
	p := process{pid: pid}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return p, false
	}
	// The name stands in parentheses and may hold anything; what follows the last one is regular.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 22 || fields[0] == "Z" {
		return p, false
	}
	p.parent, _ = strconv.Atoi(fields[1])
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	pages, _ := strconv.ParseInt(fields[21], 10, 64)
	p.cpu, p.rss = time.Duration(user+system)*tick, pages*int64(os.Getpagesize())/1024
	cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	p.args = strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	p.cwd, _ = os.Readlink(filepath.Join(dir, "cwd"))
	return p, true
}

// Pids are a node's processes; 0 means that there is none.
type Pids struct {
	Agent      int `json:"agent"`
	Sentinel   int `json:"sentinel"`
	Postmaster int `json:"postmaster"`
}

// pids finds a node's processes by their command lines and, of PostgreSQL, the working directory.
func (n Node) pids(all []process) Pids {
	var out Pids
	var postgres []process
	for _, p := range all {
		switch {
		case len(p.args) > 3 && p.args[1] == "run" && slices.Contains(p.args, n.configFile()):
			out.Agent = p.pid
		case len(p.args) > 3 && p.args[1] == "sentinel" && slices.Contains(p.args, n.socket()):
			out.Sentinel = p.pid
		case p.cwd == n.dataDir():
			postgres = append(postgres, p)
		}
	}
	for _, p := range postgres { // the one whose parent is none of them
		if !slices.ContainsFunc(postgres, func(o process) bool { return o.pid == p.parent }) {
			out.Postmaster = p.pid
		}
	}
	return out
}

// everything lists all processes of a node: agent and sentinel, all that descend from them, and all that work in the data directory.
func (n Node) everything(all []process) []process {
	ids := n.pids(all)
	in := map[int]bool{}
	for _, p := range all {
		if p.pid == ids.Agent || p.pid == ids.Sentinel || p.cwd == n.dataDir() {
			in[p.pid] = true
		}
	}
	for grew := true; grew; {
		grew = false
		for _, p := range all {
			if !in[p.pid] && in[p.parent] {
				in[p.pid], grew = true, true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(p process) bool { return !in[p.pid] })
}

// killAll kills what a node has until nothing is left.
func (n Node) killAll() error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		all, err := processes()
		if err != nil {
			return err
		}
		left := n.everything(all)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill %s: %d processes are left, the first is %d", n.Name, len(left), left[0].pid)
		}
		for _, p := range left {
			if err := signal(p.pid, syscall.SIGKILL); err != nil {
				return err
			}
		}
		pause(2 * time.Millisecond)
	}
}

// signal sends one; a process that has ended meanwhile is no error.
func signal(pid int, s syscall.Signal) error {
	if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", s, pid, err)
	}
	return nil
}

func pause(d time.Duration) { <-time.After(d) }
