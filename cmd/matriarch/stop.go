package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// stopVerb is ExecStop of the unit. systemd runs that for a stop and for a restart alike, and only the first shall stop PostgreSQL.
func stopVerb() *cli.Command {
	return &cli.Command{
		Name:  "stop",
		Usage: "end a running node in good order (started by systemd, not by hand)",
		Description: "A primary is handed over, PostgreSQL is stopped, the lease is given back. While systemd restarts the unit it does nothing, so that PostgreSQL runs on.\n" +
			"By hand use 'systemctl stop matriarch', or kill -INT where there is no systemd.\n" +
			"Example: matriarch stop --unit matriarch.service --pid 4711",
		Hidden: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "unit", Usage: "the `UNIT` that systemd stops"},
			&cli.StringFlag{Name: "pid", Usage: "`PID` of its main process; empty: it has ended already", EnvVars: []string{"MAINPID"}},
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			if c.String("pid") == "" {
				return nil
			}
			var pid int
			if _, err := fmt.Sscanf(c.String("pid"), "%d", &pid); err != nil || pid < 2 {
				return usagef(c, "--pid %q is no process", c.String("pid"))
			}
			if restarting(c.Context, c.String("unit")) {
				return nil
			}
			return interrupt(pid)
		},
	}
}

// askSystemd bounds the question for the unit's job.
const askSystemd = 2 * time.Second

// restarting reports whether systemd will start the unit again after this stop. In doubt it will not: an orderly end loses nothing, an agent
// that leaves for good without one costs a failover.
func restarting(ctx context.Context, unit string) bool {
	if unit == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askSystemd)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "list-jobs", "--no-legend", "--no-pager", "--full", unit).Output()
	return err == nil && restartJob(string(out), unit)
}

// restartJob looks for the unit's job in lines of number, unit, type and state.
func restartJob(jobs, unit string) bool {
	for line := range strings.Lines(jobs) {
		if f := strings.Fields(line); len(f) >= 3 && f[1] == unit {
			return f[2] == "restart"
		}
	}
	return false
}

// interrupt sends SIGINT and waits for the end of the process; how long is for systemd to say.
func interrupt(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, unix.SIGINT, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
