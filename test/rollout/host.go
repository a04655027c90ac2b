package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// host is one container machine.
type host struct {
	bed   *bed
	name  string
	n     int // its port of the switch, and the end of its address
	suite string
	group int
	ended chan struct{} // closed when the machine has gone
}

func (h *host) ip() string     { return fmt.Sprintf("10.77.0.%d", h.n) }
func (h *host) dir() string    { return filepath.Join(h.bed.dir, "hosts", h.name) }
func (h *host) cgroup() string { return filepath.Join(h.bed.cgroup, h.name) }
func (h *host) port() string   { return fmt.Sprintf("sw%d", h.n) }

func sh(format string, args ...any) error {
	script := fmt.Sprintf(format, args...)
	out, err := exec.Command("bash", "-euc", script).CombinedOutput() //nolint:noctx // takes milliseconds
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.TrimSpace(script), err, out)
	}
	return nil
}

// lay makes the host's network and what its disk has over the tree's.
func (h *host) lay() error {
	if err := sh(`ip netns add %[1]s; ip -n %[1]s link set lo up; ip link add %[2]s type veth peer name eth0 netns %[1]s; ip link set %[2]s master br0 up; ip -n %[1]s link set eth0 up`,
		h.name, h.port()); err != nil {
		return err
	}
	return sh(`u=%[1]s/up; mkdir -p $u/root/.ssh $u/etc/ssh $u/var/log/journal; chmod 700 $u/root $u/root/.ssh; cp %[2]s/key.pub $u/root/.ssh/authorized_keys
echo %[3]s >$u/etc/hostname; echo "127.0.0.1 localhost %[3]s" >$u/etc/hosts; ssh-keygen -q -t ed25519 -N "" -f $u/etc/ssh/ssh_host_ed25519_key
%[4]s`, h.dir(), h.bed.dir, h.name, h.citus())
}

// citus copies the machine's own extension, the stand-in or the real one, where the tree's PostgreSQL is of the same version.
func (h *host) citus() string {
	if !h.bed.citus || h.suite != "bookworm" {
		return ""
	}
	return `for d in lib/postgresql/15/lib share/postgresql/15/extension; do mkdir -p $u/usr/$d; cp -r /usr/$d/*citus* $u/usr/$d/; done`
}

// boot starts the machine and waits until ssh answers.
func (h *host) boot(ctx context.Context) error {
	if err := sh(`ip -n %[1]s addr flush dev eth0; ip -n %[1]s addr add %[2]s/24 dev eth0; ip link set %[3]s up`, h.name, h.ip(), h.port()); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(h.bed.out, h.name+".console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("test/rollout/host.sh", h.name, filepath.Join(h.bed.dir, h.suite), h.dir(), h.cgroup()) //nolint:noctx // lives until its cgroup is killed
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	h.ended = make(chan struct{})
	go func() { _ = cmd.Wait(); close(h.ended) }()
	return h.waitSSH(ctx)
}

func (h *host) waitSSH(ctx context.Context) error {
	return h.bed.until(ctx, time.Minute, h.name+" answers on ssh", func() error {
		_, err := h.ssh(ctx, "true")
		return err
	})
}

// powerCut ends the machine as a pulled plug does. Its page cache is the machine's below and survives.
func (h *host) powerCut() error {
	err := errors.Join(sh("ip link set %s down", h.port()), os.WriteFile(filepath.Join(h.cgroup(), "cgroup.kill"), []byte("1"), 0))
	if err != nil {
		return err
	}
	<-h.ended
	removeCgroup(h.cgroup())
	return sh("ip -n %s addr flush dev eth0", h.name)
}

// ssh runs a script on the host.
func (h *host) ssh(ctx context.Context, script string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ssh", append(h.bed.sshFlags(), "root@"+h.ip(), "bash", "-s")...)
	cmd.Stdin = strings.NewReader(script)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", h.name, firstLine(script), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(string(out)), err
}

func (b *bed) sshFlags() []string {
	return []string{
		"-F", "none", "-i", filepath.Join(b.dir, "key"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
		"-o", "BatchMode=yes", "-o", "ConnectTimeout=2",
	}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
