package fence

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ioprioProcess makes ioprio_set mean one process; class 0 is what its niceness says.
const ioprioProcess = 1

// clockStep is how far a postmaster's own idea of its start may be from the kernel's, after steps of the wall clock.
const clockStep = 10 * time.Second

// postmaster is the server under watch: our own child, or one that was adopted.
type postmaster struct {
	proc
	dir     string
	uid     uint32 // owner of the data directory
	gid     uint32
	pidfd   int           // adopted only, else -1
	gone    chan struct{} // adopted only: closed when it has ended
	started time.Time
}

func (p *postmaster) adopted() bool { return p.pidfd >= 0 }

// signal reaches exactly this postmaster: a child keeps its pid until it is reaped, an adopted one is held by its pidfd.
func (p *postmaster) signal(sig unix.Signal) error {
	err := error(nil)
	if p.adopted() {
		err = unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	} else {
		err = unix.Kill(p.pid, sig)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal postmaster %d: %w", p.pid, err)
	}
	return nil
}

// isStandby reports whether dir is marked as a standby's. Doubt counts as no, since a server without the mark may be writable.
func isStandby(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, "standby.signal"))
	return err == nil
}

// spawn forks a postmaster. The calling thread must live as long as this process: the kernel sends SIGQUIT when it ends.
func spawn(r StartRequest) (*postmaster, error) {
	if err := checkStart(r); err != nil {
		return nil, err
	}
	log, err := openLog(r)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, refuse(ErrFailed, "start PostgreSQL: %v", err)
	}
	defer null.Close()
	attr := &syscall.ProcAttr{
		Dir:   r.Dir,
		Env:   r.Env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGQUIT},
	}
	if int(r.UID) != os.Geteuid() {
		attr.Sys.Credential = &syscall.Credential{Uid: r.UID, Gid: r.GID, Groups: r.Groups}
	}
	pid, err := syscall.ForkExec(r.Argv[0], r.Argv, attr)
	if err != nil {
		return nil, refuse(ErrFailed, "start %s as uid %d: %v", r.Argv[0], r.UID, err)
	}
	p := &postmaster{proc: proc{pid: pid}, dir: r.Dir, uid: r.UID, gid: r.GID, pidfd: -1, started: time.Now()}
	if seen, err := readProc(pid); err == nil {
		p.proc = seen
	}
	// The sentinel's own protection must not pass to the server. Without the right to protect itself there is nothing to take back.
	_ = oomScore(pid, 0)
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, ioprioProcess, uintptr(pid), 0)
	return p, nil
}

func checkStart(r StartRequest) error {
	if len(r.Argv) == 0 || !filepath.IsAbs(r.Argv[0]) || !filepath.IsAbs(r.Dir) || !filepath.IsAbs(r.LogFile) {
		return refuse(ErrInvalid, "start needs absolute paths of postgres, the data directory and the log file")
	}
	i := slices.Index(r.Argv, "-D")
	if i < 0 || i+1 >= len(r.Argv) || filepath.Clean(r.Argv[i+1]) != filepath.Clean(r.Dir) {
		return refuse(ErrInvalid, "start needs the arguments -D %s", r.Dir)
	}
	if !isStandby(r.Dir) {
		return refuse(ErrNotStandby, "%s/standby.signal is missing: PostgreSQL is started as a standby only, create it first", r.Dir)
	}
	left, err := inDir(r.Dir)
	if err != nil {
		return refuse(ErrFailed, "%v", err)
	}
	for _, p := range left {
		if p.postgres() {
			return refuse(ErrRunning, "process %d of PostgreSQL still runs in %s: stop it first", p.pid, r.Dir)
		}
	}
	return nil
}

// openLog never follows a link: the folder may belong to a lesser user than the sentinel's.
func openLog(r StartRequest) (*os.File, error) {
	flags := os.O_WRONLY | os.O_APPEND | unix.O_NOFOLLOW
	f, err := os.OpenFile(r.LogFile, flags|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil && int(r.UID) != os.Geteuid() {
		err = f.Chown(int(r.UID), int(r.GID))
	}
	if errors.Is(err, fs.ErrExist) {
		f, err = os.OpenFile(r.LogFile, flags, 0)
	}
	if err != nil {
		return nil, refuse(ErrFailed, "open PostgreSQL's log: %v", err)
	}
	return f, nil
}

// orderPromotion asks the postmaster to promote, once it can hear: a signal before its handlers are set would kill it, and a trigger file
// before its recovery begins would be removed. done is false when it is too early. valid is asked last, after the slow file system.
func (p *postmaster) orderPromotion(valid func() bool) (done bool, err error) {
	f, err := readPidFile(p.dir)
	if err != nil || f.pid != p.pid || f.state == "" {
		return false, nil //nolint:nilerr // not there yet
	}
	trigger := filepath.Join(p.dir, "promote")
	if err := p.create(trigger); err != nil {
		return false, fmt.Errorf("order promotion: %w", err)
	}
	if !valid() {
		return false, os.Remove(trigger)
	}
	return true, p.signal(unix.SIGUSR1)
}

// create makes an empty file that belongs to the server. One that is there already is left as it is; a link is never followed.
func (p *postmaster) create(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if int(p.uid) != os.Geteuid() {
		err = f.Chown(int(p.uid), int(p.gid))
	}
	return errors.Join(err, f.Close())
}

// pidFile is what postmaster.pid tells.
type pidFile struct {
	pid   int
	dir   string
	start time.Time
	state string // starting, standby, ready, stopping; empty before recovery begins
}

func readPidFile(dir string) (pidFile, error) {
	b, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return pidFile{}, err
	}
	return parsePidFile(string(b))
}

func parsePidFile(s string) (pidFile, error) {
	l := strings.Split(s, "\n")
	if len(l) < 3 {
		return pidFile{}, fmt.Errorf("read postmaster.pid: %d lines, at least 3 expected", len(l))
	}
	pid, err1 := strconv.Atoi(l[0])
	start, err2 := strconv.ParseInt(l[2], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return pidFile{}, fmt.Errorf("read postmaster.pid: %w", err)
	}
	f := pidFile{pid: pid, dir: l[1], start: time.Unix(start, 0)}
	if len(l) > 7 {
		f.state = strings.TrimSpace(l[7])
	}
	return f, nil
}

// adopt takes hold of a running postmaster. The pidfd comes first: what is verified after it cannot be another process of the same pid.
func adopt(r AdoptRequest) (*postmaster, error) {
	if r.PID < 2 || !filepath.IsAbs(r.Dir) || r.GraceMS < 0 {
		return nil, refuse(ErrInvalid, "adopt needs a pid, the absolute path of the data directory and no negative grace")
	}
	fd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return nil, refuse(ErrIdentity, "hold process %d (needs Linux 5.3): %v", r.PID, err)
	}
	p, err := identify(r)
	if err == nil && ended(fd, 0) {
		err = refuse(ErrIdentity, "process %d has ended", r.PID)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	p.pidfd = fd
	return p, nil
}

// watch closes gone when the adopted process has ended. The pidfd must stay open until then.
func (p *postmaster) watch() {
	p.gone = make(chan struct{})
	go func() {
		for !ended(p.pidfd, -1) {
		}
		close(p.gone)
	}()
}

// identify verifies that the process is the postmaster of the data directory.
func identify(r AdoptRequest) (*postmaster, error) {
	info, err := os.Stat(r.Dir)
	if err != nil {
		return nil, refuse(ErrIdentity, "look at the data directory: %v", err)
	}
	f, err := readPidFile(r.Dir)
	if err != nil {
		return nil, refuse(ErrIdentity, "no server runs in %s: %v", r.Dir, err)
	}
	seen, err := readProc(r.PID)
	switch {
	case err != nil:
		return nil, refuse(ErrIdentity, "look at process %d: %v", r.PID, err)
	case f.pid != r.PID:
		return nil, refuse(ErrIdentity, "the postmaster of %s is %d, not %d", r.Dir, f.pid, r.PID)
	case !seen.postgres():
		return nil, refuse(ErrIdentity, "process %d is %s, not postgres: postmaster.pid is stale", r.PID, seen.comm)
	case !newDirectory(r.Dir).holds(r.PID):
		return nil, refuse(ErrIdentity, "process %d does not work in %s: postmaster.pid is stale", r.PID, r.Dir)
	case math.Abs(float64(seen.startedAt().Sub(f.start))) > float64(clockStep):
		return nil, refuse(ErrIdentity, "process %d began at %s, postmaster.pid says %s: it is stale or the clock was set; restart PostgreSQL instead",
			r.PID, seen.startedAt().UTC().Format(time.RFC3339), f.start.UTC().Format(time.RFC3339))
	}
	p := &postmaster{proc: seen, dir: r.Dir, started: f.start}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		p.uid, p.gid = st.Uid, st.Gid
	}
	return p, nil
}

// ended waits up to timeout milliseconds (-1: for ever) for the process behind the pidfd to end.
func ended(pidfd, timeout int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, timeout)
	return n == 1 || (err != nil && err != unix.EINTR)
}
