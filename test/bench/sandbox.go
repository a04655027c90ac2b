package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

const insideVar = "MATRIARCH_BENCH_INSIDE"

// sandbox runs the program again in namespaces of its own: loopback addresses that collide with nobody's, and processes that the kernel
// ends together with the first one, which is a shell because somebody has to reap what daemons leave behind. It reports whether it did.
func sandbox() (bool, error) {
	if os.Geteuid() != 0 || os.Getenv(insideVar) != "" {
		return false, nil
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return false, fmt.Errorf("unshare is missing: install util-linux: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return false, fmt.Errorf("find the own program: %w", err)
	}
	args := append([]string{"--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "bash", "-c", `ip link set lo up && "$0" "$@"; exit $?`, self}, os.Args[1:]...)
	cmd := exec.Command(unshare, args...) //nolint:noctx // it ends itself on the signals it shares with us
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err = cmd.Run()
	if ctx.Err() != nil {
		return true, errors.New("interrupted")
	}
	return true, err
}
