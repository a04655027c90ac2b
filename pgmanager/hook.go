package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// hookGrace is how long the output of a killed hook is waited for.
const hookGrace = time.Second

// RunHook runs an operator's command as PostgreSQL's account, in a session of its own, with nothing in its environment but PATH, HOME, USER,
// LANG and env. Its output goes to the log line by line; the error has its last lines. When ctx ends the command and its children are killed.
func (m *Manager) RunHook(ctx context.Context, name string, argv, env []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=" + m.os.home, "USER=" + m.os.name, "LOGNAME=" + m.os.name,
	}, env...)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = hookGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: m.os.credential(), Pdeathsig: syscall.SIGKILL, Setsid: true}
	out := &tailWriter{onLine: func(line string) {
		if line = strings.TrimSpace(line); line != "" {
			m.log.Info("hook says", "hook", name, "output", line)
		}
	}}
	cmd.Stdout, cmd.Stderr = out, out
	runtime.LockOSThread() // the death signal is sent when the forking thread ends
	defer runtime.UnlockOSThread()
	began := time.Now()
	err := cmd.Run()
	what := fmt.Sprintf("hook %s (%s)", name, filepath.Base(argv[0]))
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s took longer than %s", what, time.Since(began).Round(100*time.Millisecond))
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("%s: %w: %s", what, err, out)
	}
	m.log.Info("hook ended well", "hook", name, "took", time.Since(began).String())
	return nil
}
