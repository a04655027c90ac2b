package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// insideVar names the directory where the hosts' disks are mounted, for the inner program alone.
const insideVar = "MATRIARCH_CHAOS_INSIDE"

// sandbox runs the program again as root of namespaces of its own: networks, mounts and processes end with it. The first process is a shell,
// because somebody has to reap what daemons leave behind. It reports whether it did.
func sandbox() (bool, error) {
	if os.Getenv(insideVar) != "" {
		return false, nil
	}
	if os.Geteuid() != 0 {
		return false, errors.New("network namespaces need root: run it as root")
	}
	for _, tool := range []string{"unshare", "nsenter", "ip", "tc", "nft", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			return false, fmt.Errorf("%w: install util-linux, iproute2 and nftables", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return false, fmt.Errorf("find the own program: %w", err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "matriarch-chaos-")
	if err != nil {
		return false, fmt.Errorf("directory: %w", err)
	}
	defer os.Remove(dir)
	script := `mkdir -p /run/netns && mount -t tmpfs -o size=1m tmpfs /run/netns && mount -t tmpfs -o size=1m,mode=755 tmpfs "$1" && ip link set lo up && shift && "$0" "$@"; exit $?`
	args := append([]string{"--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "bash", "-c", script, self, dir}, os.Args[1:]...)
	cmd := exec.Command("unshare", args...) //nolint:noctx // a signal to the outer program ends it, too
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return true, fmt.Errorf("sandbox: %w", err)
	}
	return true, nil
}
