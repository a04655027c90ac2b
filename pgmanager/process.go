package pgmanager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// RunningPostmaster returns the process that runs on the data directory. It looks behind postmaster.pid: the process has
// to live and to stand in the data directory, so a pid file left by a crash and reused by another program does not count.
func (m *Manager) RunningPostmaster() (pid int, ok bool) {
	b, err := os.ReadFile(filepath.Join(m.cfg.DataDir, "postmaster.pid"))
	if err != nil {
		return 0, false
	}
	p, err := pgconf.ParsePidFile(b)
	if err != nil {
		return 0, false
	}
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", p.PID))
	if errors.Is(err, fs.ErrPermission) {
		return p.PID, true // alive and not ours to look at: the careful answer
	}
	if err != nil {
		return 0, false
	}
	dir, err := os.Stat(m.cfg.DataDir)
	return p.PID, err == nil && os.SameFile(cwd, dir)
}

// hangUp sends SIGHUP to the postmaster.
func (m *Manager) hangUp(pid int) error {
	p, err := os.FindProcess(pid) // holds the process, not the number
	if err != nil {
		return err
	}
	defer p.Release() //nolint:errcheck // nothing to lose
	if now, ok := m.RunningPostmaster(); !ok || now != pid {
		return os.ErrProcessDone
	}
	return p.Signal(syscall.SIGHUP)
}

// endPoll is how often a process that was told to end is looked at.
const endPoll = 2 * time.Millisecond

// EndReceiver ends the walreceiver and returns once no process of it is left. With the credentials dropped and the
// upstream cleared before, none that could confirm a write comes back.
func (m *Manager) EndReceiver(ctx context.Context) error { return m.endChildren(ctx, "walreceiver") }

// EndSenders ends every walsender without asking SQL; a fast shutdown waits for them.
func (m *Manager) EndSenders(ctx context.Context) error { return m.endChildren(ctx, "walsender") }

// Ended reads from a stopped data directory whether it was shut down in order as a primary, on which timeline, and where its last
// record begins: the shutdown checkpoint.
func (m *Manager) Ended(ctx context.Context) (fsm.Timeline, fsm.LSN, bool, error) {
	c, err := m.ControlData(ctx)
	if err != nil {
		return 0, 0, false, fmt.Errorf("read how the server ended: %w", err)
	}
	const asPrimary = "shut down"
	return c.Timeline, c.Checkpoint, c.State == asPrimary, nil
}

// endChildren terminates the postmaster's children of one kind until a scan finds none.
func (m *Manager) endChildren(ctx context.Context, kind string) error {
	tick := time.NewTicker(endPoll)
	defer tick.Stop()
	told := map[int]bool{}
	for {
		pids, err := m.children(kind)
		if err != nil {
			return fmt.Errorf("end the %s: %w", kind, err)
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if told[pid] {
				continue
			}
			if err := m.terminate(pid, kind); err != nil {
				return fmt.Errorf("end the %s: %w", kind, err)
			}
			told[pid] = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end the %s: process %v is still there: %w", kind, pids, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// terminate sends SIGTERM, having made sure that the number still means the same process.
func (m *Manager) terminate(pid int, kind string) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil // gone
	}
	defer p.Release() //nolint:errcheck // nothing to lose
	if !m.isKind(pid, kind) {
		return nil
	}
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// children returns the living children of the postmaster that carry a kind in their title. It reads /proc: during
// recovery, a shutdown or with all connections in use SQL is not to be had.
func (m *Manager) children(kind string) ([]int, error) {
	parent, ok := m.RunningPostmaster()
	if !ok {
		return nil, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && livingChild(pid, parent) && m.isKind(pid, kind) {
			out = append(out, pid)
		}
	}
	return out, nil
}

// livingChild reports whether pid is a child of parent and no zombie.
func livingChild(pid, parent int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	i := bytes.LastIndexByte(b, ')') // the name before it may hold anything
	if i < 0 {
		return false
	}
	f := strings.Fields(string(b[i+1:]))
	return len(f) > 1 && f[0] != "Z" && f[0] != "X" && f[1] == strconv.Itoa(parent)
}

// isKind looks at the process title, which is "postgres: <cluster_name>: <kind> ...".
func (m *Manager) isKind(pid int, kind string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	return titleIs(string(bytes.TrimRight(bytes.ReplaceAll(b, []byte{0}, []byte{' '}), " ")), kind)
}

// titleIs accepts any cluster name, since an adopted server runs under its old one until its restart.
func titleIs(title, kind string) bool {
	rest, ok := strings.CutPrefix(title, "postgres: ")
	return ok && (strings.HasPrefix(rest+" ", kind+" ") || strings.Contains(rest+" ", ": "+kind+" "))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
