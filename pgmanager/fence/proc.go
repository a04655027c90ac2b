package fence

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of times in /proc/PID/stat, the same on every Linux.
const tick = time.Second / 100

// proc is one line of the process table. pid and start together never name two processes.
type proc struct {
	pid, ppid int
	comm      string
	state     byte
	tty       int
	start     uint64 // ticks since boot
}

// postgres reports whether the program is the server's.
func (p proc) postgres() bool { return p.comm == "postgres" || p.comm == "postmaster" }

// startedAt returns the wall time of the process's start, as the present wall clock counts back.
func (p proc) startedAt() time.Time {
	return time.Now().Add(time.Duration(p.start)*tick - Clock().Boot)
}

// newInstance draws a number for a sentinel. What stands before the dash tells this boot of this host, or of this container, from
// any other: a copied disk brings neither the kernel's boot id nor the start of process 1 with it.
func newInstance() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // cannot fail
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return hex.EncodeToString(id)
	}
	first, _ := readProc(1) // hidden where /proc is mounted so; the kernel's number remains
	sum := sha256.Sum256(fmt.Appendf(boot, "%d", first.start))
	return hex.EncodeToString(sum[:8]) + "-" + hex.EncodeToString(id)
}

func procPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

func readProc(pid int) (proc, error) {
	b, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return proc{}, err
	}
	return parseStat(b)
}

// parseStat reads /proc/PID/stat. The name may hold blanks and parentheses.
func parseStat(b []byte) (proc, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open {
		return proc{}, fmt.Errorf("parse process status %q: no name in it", b)
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 {
		return proc{}, fmt.Errorf("parse process status %q: %d fields after the name", b, len(f))
	}
	pid, err1 := strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	ppid, err2 := strconv.Atoi(f[1])
	tty, err3 := strconv.Atoi(f[4])
	start, err4 := strconv.ParseUint(f[19], 10, 64)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return proc{}, fmt.Errorf("parse process status: %w", err)
	}
	return proc{pid: pid, ppid: ppid, comm: string(b[open+1 : end]), state: f[0][0], tty: tty, start: start}, nil
}

// pids lists all processes that can be seen.
func pids() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			out = append(out, pid)
		}
	}
	return out, nil
}

// descendants lists the processes below root, parents before their children.
func descendants(root int) ([]proc, error) {
	all, err := pids()
	if err != nil {
		return nil, err
	}
	below := map[int][]proc{}
	for _, pid := range all {
		if p, err := readProc(pid); err == nil {
			below[p.ppid] = append(below[p.ppid], p)
		}
	}
	out := below[root]
	for i := 0; i < len(out); i++ {
		out = append(out, below[out[i].pid]...)
	}
	return out, nil
}

// inDir lists the processes whose working directory is dir: PostgreSQL's, and programs that they started. The caller itself and people's
// shells (with a terminal, and not postgres) are let alone. A zombie has no working directory and does not count.
func inDir(dir string) ([]proc, error) {
	all, err := pids()
	if err != nil {
		return nil, err
	}
	here := newDirectory(dir)
	var out []proc
	for _, pid := range all {
		if pid == os.Getpid() || !here.holds(pid) {
			continue
		}
		p, err := readProc(pid)
		if err == nil && p.state != 'Z' && (p.postgres() || p.tty == 0) {
			out = append(out, p)
		}
	}
	return out, nil
}

// directory recognises the working directory of processes, by name and by inode.
type directory struct {
	path string
	info os.FileInfo // nil when it is gone
}

func newDirectory(path string) directory {
	d := directory{path: filepath.Clean(path)}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		d.path = real
	}
	d.info, _ = os.Stat(path)
	return d
}

func (d directory) holds(pid int) bool {
	link := procPath(pid, "cwd")
	name, err := os.Readlink(link)
	if err != nil {
		return false
	}
	if strings.TrimSuffix(name, " (deleted)") == d.path {
		return true
	}
	if d.info == nil {
		return false
	}
	info, err := os.Stat(link)
	return err == nil && os.SameFile(info, d.info)
}

// signal sends to the very process that was seen, never to a later one of the same pid. A process that is gone is no error.
func (p proc) signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err == nil {
		defer unix.Close(fd)
	}
	if now, rerr := readProc(p.pid); rerr != nil || now.start != p.start {
		return nil
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
	} else { // a kernel before 5.3
		err = unix.Kill(p.pid, sig)
	}
	if err != nil && err != unix.ESRCH {
		return fmt.Errorf("signal %d (%s): %w", p.pid, p.comm, err)
	}
	return nil
}
