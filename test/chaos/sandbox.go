package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// insideVar names the directory where the hosts' disks are, runVar the run, for the inner program alone.
	insideVar = "MATRIARCH_CHAOS_INSIDE"
	runVar    = "MATRIARCH_CHAOS_RUN"
	// endLimit bounds how long the inner program mends when it is told to end.
	endLimit = 30 * time.Second
)

// sandbox runs the program again as root of namespaces of its own: networks, mounts and processes end with it. The first process is a shell,
// because somebody has to reap what daemons leave behind. The inner program reads our end from its standard input, so that it can thaw the disks
// that hang. It reports whether it did.
func sandbox(args []string) (bool, error) {
	if os.Getenv(insideVar) != "" {
		return false, nil
	}
	if os.Geteuid() != 0 {
		return false, errors.New("network namespaces need root: run it as root")
	}
	for _, tool := range []string{"unshare", "nsenter", "ip", "tc", "nft", "mount", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			return false, fmt.Errorf("%w: 'make deps' installs util-linux, iproute2, nftables and e2fsprogs", err)
		}
	}
	if out, err := exec.Command("unshare", "--net", "--pid", "--mount", "--mount-proc", "--fork", "true").CombinedOutput(); err != nil { //nolint:noctx // takes milliseconds
		return false, fmt.Errorf("this machine does not let root make network, process and mount namespaces; run it where CAP_SYS_ADMIN and CAP_NET_ADMIN are given, such as a virtual machine or a privileged container: %w: %s", err, out)
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
	run := fmt.Sprint(os.Getpid())
	root := cgroupRoot()
	dropCgroups(root, "")
	defer dropCgroups(root, run)
	script := `mkdir -p /run/netns && mount -t tmpfs -o size=1m tmpfs /run/netns && mount -t tmpfs -o size=10g,mode=755 tmpfs "$1" && ip link set lo up && shift && "$0" "$@"; exit $?`
	cmd := exec.Command("unshare", append([]string{"--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "bash", "-c", script, self, dir}, args...)...) //nolint:noctx // ends by its input
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return false, err
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"="+dir, runVar+"="+run)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a key pressed ends us, and we end it
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	defer context.AfterFunc(ctx, func() { _ = stdin.Close() })()
	if err := cmd.Run(); err != nil {
		return true, fmt.Errorf("sandbox: %w", err)
	}
	return true, nil
}

// whileWanted ends with the outer program, which holds the other end of our standard input.
func whileWanted() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
		time.Sleep(endLimit)
		os.Exit(1) //nolint:forbidigo // nobody may outlive the outer program for long
	}()
	return ctx, cancel
}

// machine is what this one offers to a run.
type machine struct {
	run     string
	cgroups string // empty: none
	loops   bool
}

func thisMachine(dir string) machine {
	m := machine{run: os.Getenv(runVar), cgroups: cgroupRoot()}
	d, err := newDisk(filepath.Join(dir, "try.img"), filepath.Join(dir, "try"), 64)
	if err == nil {
		m.loops = syscall.Unmount(d.dir, 0) == nil
		_ = os.Remove(d.image)
	}
	return m
}

// lacks names what faults need and this machine has not.
func (m machine) lacks() map[string]bool {
	return map[string]bool{"cgroups": m.cgroups == "", "disks": !m.loops}
}

func (m machine) String() string {
	var out []string
	for what, missing := range m.lacks() {
		if missing {
			out = append(out, "no "+what)
		}
	}
	if len(out) == 0 {
		return "this machine has all that faults need"
	}
	return "this machine has " + strings.Join(out, " and ") + " for faults that need them: they are left out"
}

// disk makes a host's; in memory alone where there are no loop devices.
func (m machine) disk(dir string, mb int) (*disk, error) {
	if m.loops {
		return newDisk(dir+".img", dir, mb)
	}
	return &disk{dir: dir}, sh(fmt.Sprintf("mkdir -p %[1]s && mount -t tmpfs -o size=%[2]dm,mode=755 tmpfs %[1]s", dir, mb))
}
