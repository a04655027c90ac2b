package pgmanager

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// toolGrace is how long a cancelled tool may take to clean up after SIGINT.
const toolGrace = 10 * time.Second

// tool is one run of one of PostgreSQL's programs.
type tool struct {
	name   string
	args   []string
	env    []string
	in     string       // stdin
	onLine func(string) // every line of stderr
}

// run runs a tool as PostgreSQL's account and returns its stdout. It dies with us, so that it never works on a data
// directory that a restarted agent already uses.
func (m *Manager) run(ctx context.Context, t tool) ([]byte, error) {
	cmd := exec.CommandContext(ctx, m.tools.Path(t.name), t.args...)
	cmd.Dir = "/"
	cmd.Env = append(m.environment(), t.env...)
	// A group of its own: pg_basebackup and initdb have children that keep writing.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = toolGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: m.os.credential(), Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var out bytes.Buffer
	tail := &tailWriter{onLine: t.onLine}
	cmd.Stdout, cmd.Stderr = &out, tail
	if t.in != "" {
		cmd.Stdin = strings.NewReader(t.in)
	}
	runtime.LockOSThread() // the death signal is sent when the forking thread ends
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	if ctx.Err() != nil {
		if cmd.Process != nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
		return nil, fmt.Errorf("%s: %w", t.name, context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", t.name, err, tail)
	}
	return out.Bytes(), nil
}

// environment is ours without what would change the behaviour of PostgreSQL or tell systemd about the wrong process.
func (m *Manager) environment() []string {
	env := []string{"LC_ALL=C", "HOME=" + m.os.home, "USER=" + m.os.name, "LOGNAME=" + m.os.name}
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(k, "PG"), strings.HasPrefix(k, "MATRIARCH"), strings.HasPrefix(k, "LISTEN_"), strings.HasPrefix(k, "LC_"):
		case k == "HOME", k == "USER", k == "LOGNAME", k == "LANG", k == "NOTIFY_SOCKET", k == "WATCHDOG_USEC", k == "WATCHDOG_PID", k == "INVOCATION_ID":
		default:
			env = append(env, kv)
		}
	}
	return env
}

// tailLines is how much of a failed tool's stderr the error shows.
const tailLines = 12

// tailWriter keeps the last lines and hands each one on. Progress lines end in a carriage return.
type tailWriter struct {
	onLine func(string)
	part   []byte
	lines  []string
}

var _ io.Writer = (*tailWriter)(nil)

func (w *tailWriter) Write(p []byte) (int, error) {
	w.part = append(w.part, p...)
	for {
		n, line, _ := scanAny(w.part)
		if n == 0 {
			return len(p), nil
		}
		w.part = w.part[n:]
		if w.onLine != nil {
			w.onLine(line)
		}
		if line = strings.TrimSpace(line); line != "" {
			w.lines = append(w.lines, line)
			w.lines = w.lines[max(0, len(w.lines)-tailLines):]
		}
	}
}

func scanAny(b []byte) (n int, line string, ok bool) {
	i := bytes.IndexAny(b, "\r\n")
	if i < 0 {
		if len(b) > bufio.MaxScanTokenSize {
			return len(b), string(b), true
		}
		return 0, "", false
	}
	return i + 1, string(b[:i]), true
}

// String joins what is kept.
func (w *tailWriter) String() string {
	lines := w.lines
	if s := strings.TrimSpace(string(w.part)); s != "" {
		lines = append(slices.Clip(lines), s)
	}
	return strings.Join(lines, "; ")
}
