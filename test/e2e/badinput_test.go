package e2e

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"matriarch/internal/testkit"
)

// TestBadInput: what cannot work is refused in one line that names the thing, and nothing is changed.
func TestBadInput(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)

	c.Run("command line", func(t *testing.T) {
		for _, bad := range []struct {
			args []string
			code int
			says string
		}{
			{[]string{"bootstrap", "--colour"}, 2, "--help"},
			{[]string{"run", "--confg", "x"}, 2, "confg"},
			{[]string{"starrt"}, 2, "starrt"},
			{[]string{"join"}, 2, "token"},
			{[]string{"remove"}, 2, "NODE"},
			{[]string{"failover"}, 2, "--group"},
			{[]string{"list", "--output", "xml"}, 2, "xml"},
			{[]string{"bootstrap", "--group", "one"}, 2, "one"},
			{[]string{"run", "--config", "/nonexistent/matriarch.yml"}, 1, "/nonexistent/matriarch.yml"},
			{[]string{"join", "127.0.0.1:7400", "--token", "mt1.rubbish"}, 1, "token"},
		} {
			t.Run(strings.Join(bad.args, " "), func(t *testing.T) { refused(t, testkit.CLI(t, bad.args...), bad.code, bad.says) })
		}
	})

	c.Run("bootstrap", func(t *testing.T) {
		busy := c.Lay("busy", 0)
		for _, addr := range []string{busy.Peer(), busy.API(), busy.PG()} {
			l := listen(t, addr)
			refused(t, busy.BootstrapOnly(), 1, addr, "in use")
			untouched(t, busy)
			_ = l.Close()
		}
		for _, bad := range []struct {
			what  string
			extra []string
			says  string
		}{
			{"no programs", []string{"--pg-bin", "/nonexistent"}, "/nonexistent"},
			{"an address that is not ours", []string{"--listen", "192.0.2.1:7400"}, "192.0.2.1"},
			{"a lease too short", []string{"--ttl", "1s"}, "4s"},
			{"a name with blanks", []string{"--name", "a b"}, "a b"},
			{"a state directory below a file", []string{"--state-dir", "/etc/hostname/x"}, "/etc/hostname"},
			{"nothing to adopt", []string{"--adopt"}, "adopt"},
		} {
			t.Run(bad.what, func(t *testing.T) {
				n := c.Lay("bad-"+strings.ReplaceAll(bad.what, " ", "-"), 0)
				refused(t, n.BootstrapOnly(bad.extra...), 1, bad.says)
				untouched(t, n)
			})
		}
		taken := c.Lay("data-there", 0)
		initDB(t, taken)
		refused(t, taken.BootstrapOnly(), 1, taken.DataDir(), "--adopt")
	})

	c.Run("run", func(t *testing.T) {
		n := c.Lay("n", 0)
		if r := n.BootstrapOnly(); r.Code != 0 {
			t.Fatal(r.Err)
		}
		good, err := os.ReadFile(n.Config())
		if err != nil {
			t.Fatal(err)
		}
		run := func(t *testing.T, config string, says ...string) {
			t.Helper()
			if err := os.WriteFile(n.Config(), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			refused(t, runBriefly(t, c, nil, "run", "--config", n.Config()), 1, says...)
			if left := n.Processes(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		}
		t.Run("an unknown key", func(t *testing.T) { run(t, string(good)+"lisen: x\n", "lisen", "listen", n.Config()) })
		t.Run("rubbish", func(t *testing.T) { run(t, "{{{", n.Config()) })
		t.Run("a port in use", func(t *testing.T) {
			for _, addr := range []string{n.Peer(), n.API()} {
				l := listen(t, addr)
				run(t, string(good), addr, "in use")
				_ = l.Close()
			}
		})
		t.Run("no programs", func(t *testing.T) {
			run(t, strings.Replace(string(good), "postgresql:\n", "postgresql:\n  bin_dir: /nonexistent\n", 1), "/nonexistent")
		})
		if os.Geteuid() == 0 {
			t.Run("without permission", func(t *testing.T) {
				if err := os.WriteFile(n.Config(), good, 0o600); err != nil {
					t.Fatal(err)
				}
				refused(t, runBriefly(t, c, testkit.As(t, "nobody"), "run", "--config", n.Config()), 1, n.Config(), "permission denied")
			})
			t.Run("another owner of the data directory", func(t *testing.T) {
				initDB(t, n)
				give(t, n.DataDir(), "root")
				run(t, string(good), n.DataDir(), "chown")
				_ = os.RemoveAll(n.DataDir())
			})
			t.Run("a full disk", func(t *testing.T) {
				fullDisk(t, n, func() { run(t, string(good), filepath.Join(n.Dir, "raft"), "no space left") })
			})
		}
	})
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// runBriefly runs the program, which should end by itself soon.
func runBriefly(t *testing.T, c *testkit.Cluster, as *syscall.SysProcAttr, args ...string) testkit.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Bin, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr, cmd.Dir = &out, &errs, as, "/"
	_ = cmd.Run()
	if ctx.Err() != nil {
		t.Errorf("it did not end by itself: %s", errs.String())
	}
	return testkit.Result{Code: cmd.ProcessState.ExitCode(), Out: out.String(), Err: lastLine(errs.String())}
}

// lastLine leaves out what was logged on the way.
func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// fullDisk puts Raft's directory on a file system without room.
func fullDisk(t *testing.T, n *testkit.Node, f func()) {
	t.Helper()
	raft := filepath.Join(n.Dir, "raft")
	if err := os.MkdirAll(raft, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", raft, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no mount here: %v", err)
	}
	defer func() { _ = syscall.Unmount(raft, syscall.MNT_DETACH) }()
	_ = os.WriteFile(filepath.Join(raft, "filler"), make([]byte, 1<<20), 0o600) // as much as goes in
	f()
}
