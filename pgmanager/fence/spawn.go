package fence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spawnWithin bounds the wait for a new sentinel to answer.
const spawnWithin = 10 * time.Second

// SpawnConfig tells how to start a sentinel.
type SpawnConfig struct {
	Executable string   // absolute path
	Args       []string // without the program's name
	Env        []string // nil: the caller's
	LogFile    string   // gets what it prints before and after its own log
	Socket     string   // the socket that Args makes it serve
}

// Spawn starts a sentinel that outlives the caller, unless one answers on the socket already, and returns once it answers. The caller's
// supervisor must not kill it along with the agent (systemd: KillMode=process).
func Spawn(ctx context.Context, cfg SpawnConfig) error {
	ctx, cancel := context.WithTimeout(ctx, spawnWithin)
	defer cancel()
	if _, err := Peek(ctx, cfg.Socket); err == nil {
		return nil
	}
	log, err := os.OpenFile(cfg.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("start sentinel: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(cfg.Executable, cfg.Args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = cfg.Env, "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startPunctually(cmd.Start); err != nil {
		return fmt.Errorf("start sentinel: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // so that it leaves no zombie while the agent lives
	return await(ctx, cfg, ended)
}

// usualSlack is how late the kernel may end a sleep of an ordinary process.
const usualSlack = 50 * time.Microsecond

// startPunctually starts a process with the usual slack of timers, whatever the caller's own is: the sentinel and PostgreSQL inherit it.
func startPunctually(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return start() // late sleeps are better than no sentinel
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(usualSlack.Nanoseconds()), 0, 0, 0) // as above
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(own), 0, 0, 0) }()
	return start()
}

func await(ctx context.Context, cfg SpawnConfig, ended <-chan error) error {
	for nap := firstNap; ; nap = min(2*nap, longestNap) {
		_, err := Peek(ctx, cfg.Socket)
		if err == nil {
			return nil
		}
		select {
		case exit := <-ended:
			if _, err := Peek(ctx, cfg.Socket); err == nil {
				return nil // another was quicker and holds the lock
			}
			return fmt.Errorf("start sentinel: %w", errors.Join(errors.New("it ended at once: see "+cfg.LogFile), exit))
		case <-ctx.Done():
			return fmt.Errorf("start sentinel: no answer on %s (%w): see %s", cfg.Socket, err, cfg.LogFile)
		case <-time.After(nap):
		}
	}
}
