package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

const (
	insideVar = "MATRIARCH_BENCH_INSIDE"
	lifeline  = 3 // descriptor of a pipe whose other end the outer program holds while it lives and wants us to go on
)

// sandbox runs the program again in namespaces of its own: loopback addresses that collide with nobody's, and processes that the kernel
// ends together with the first one, which is a shell because somebody has to reap what daemons leave behind. It reports whether it did.
func sandbox() (bool, error) {
	if os.Geteuid() != 0 || os.Getenv(insideVar) != "" {
		return false, nil
	}
	self, err := os.Executable()
	if err != nil {
		return false, fmt.Errorf("find the own program: %w", err)
	}
	inner, outer, err := os.Pipe()
	if err != nil {
		return false, fmt.Errorf("sandbox: %w", err)
	}
	defer inner.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { _ = outer.Close() })
	args := append([]string{"--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "bash", "-c", `ip link set lo up && "$0" "$@"; exit $?`, self}, os.Args[1:]...)
	cmd := exec.Command("unshare", args...) //nolint:noctx // the pipe ends it in good order
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env, cmd.ExtraFiles = append(os.Environ(), insideVar+"=1"), []*os.File{inner}
	if err := cmd.Run(); err != nil {
		return true, fmt.Errorf("sandbox: %w", err)
	}
	return true, nil
}

// untilReleased ends the context when the outer program has ended or let go of us.
func untilReleased(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if os.Getenv(insideVar) == "" {
		return ctx, cancel
	}
	syscall.CloseOnExec(lifeline)
	go func() {
		_, _ = os.NewFile(lifeline, "lifeline").Read(make([]byte, 1))
		cancel()
	}()
	return ctx, cancel
}
