package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"matriarch/internal/config"
	"matriarch/internal/testkit"
)

// TestRunbooks makes what alerts are about happen, reads the metric as Prometheus would, and does what the runbook says until it is over.
func TestRunbooks(t *testing.T) {
	c, nodes := three(t)

	c.Run("certificate expires", func(t *testing.T) {
		standby := others(nodes, c.WaitPrimary(0))[0]
		const soon = 14 * 24 * time.Hour // as in the alert
		left := func() time.Duration {
			at, _ := series(t, standby, "matriarch_certificate_expiry_timestamp_seconds", `certificate="node"`)
			return time.Until(time.Unix(int64(at), 0))
		}
		renew := func() {
			c.Eventually("all certificates are renewed", func() error { // a node that starts does not answer yet
				if r := nodes[0].CLI("certificates", "renew"); r.Code != 0 {
					return fmt.Errorf("exit %d: %s", r.Code, r.Err)
				}
				return nil
			})
		}
		configure(t, standby, func(f *config.Config) { f.Certificates.Lifetime = 240 * time.Hour })
		renew()
		c.Eventually("the alert's metric", func() error { return short(left(), 0, soon) })
		c.Eventually("it is shown until when", func() error {
			at, _ := series(t, standby, "matriarch_certificate_expiry_timestamp_seconds", `certificate="node"`)
			if r := nodes[0].CLI("certificates", "show"); !strings.Contains(r.Out, time.Unix(int64(at), 0).UTC().Format("2006-01-02T15:")) {
				return fmt.Errorf("%s%s", r.Out, r.Err)
			}
			return nil
		})
		configure(t, standby, func(f *config.Config) { f.Certificates.Lifetime = 365 * 24 * time.Hour })
		renew()
		c.Eventually("its end", func() error { return short(left(), soon, 10*365*24*time.Hour) })
		if r := standby.CLI("doctor"); strings.Contains(r.Out, "expires on") {
			t.Errorf("doctor is not content:\n%s", r.Out)
		}
		c.WaitHealthy()
	})

	c.Run("standby lags", func(t *testing.T) {
		p := c.WaitPrimary(0)
		standby := others(nodes, p)[0]
		lag := func() float64 { return anybody(t, c, "matriarch_member_lag_bytes", `member="`+standby.Name+`"`) }
		receiver, err := testkit.Query[int](standby, "postgres", "SELECT pid FROM pg_stat_wal_receiver")
		if err != nil {
			t.Fatal(err)
		}
		signal(t, receiver, syscall.SIGSTOP)
		p.Exec("postgres", "SELECT pg_logical_emit_message(false, 'test', repeat('x', 9000000))")
		c.Eventually("the alert's metric", func() error { return above(lag(), 8<<20) })
		c.Eventually("list shows how far "+standby.Name+" is behind", func() error {
			if r := p.CLI("list"); !regexp.MustCompile(standby.Name + `.*[89]\.\d ?MB`).MatchString(r.Out) {
				return fmt.Errorf("%s%s", r.Out, r.Err)
			}
			return nil
		})
		if r := standby.CLI("doctor"); !strings.Contains(r.Out, "disk-fsync") || !strings.Contains(r.Out, "reach") {
			t.Errorf("doctor looks at neither disk nor network:\n%s%s", r.Out, r.Err)
		}
		signal(t, receiver, syscall.SIGCONT)
		c.Eventually("its end", func() error { return above(-lag(), -1<<20) })
		c.WaitHealthy()
	})

	c.Run("primary flaps", func(t *testing.T) {
		opened := func() float64 {
			n, _ := series(t, nodes[0], "matriarch_failovers_total", `group="0"`)
			return n
		}
		before, at := opened(), time.Now()
		for range 2 {
			switchOver(c, nodes[0], "--yes")
			c.WaitHealthy()
		}
		c.Eventually("the alert's metric", func() error { return above(opened(), before+1) })
		c.Eventually("the history tells why", func() error {
			if r := nodes[0].CLI("history", "--group", "0"); strings.Count(r.Out, "switchover asked for by ") < 2 {
				return fmt.Errorf("%s%s", r.Out, r.Err)
			}
			return nil
		})
		mustRun(t, nodes[0], "config", "set", "--group", "0", "paused=true")
		c.Eventually("another node's history tells who paused the group", func() error {
			if r := nodes[1].CLI("history", "--group", "0"); !regexp.MustCompile(`paused.*asked for by \w+@`).MatchString(r.Out) {
				return fmt.Errorf("it says:\n%s%s", r.Out, r.Err)
			}
			return nil
		})
		for _, n := range nodes {
			if r := n.CLI("doctor"); !strings.Contains(r.Out, "clock") {
				t.Errorf("doctor on %s:\n%s%s", n.Name, r.Out, r.Err)
			}
		}
		mustRun(t, nodes[0], "config", "set", "--group", "0", "paused=false")
		c.WaitHealthy()
		t.Logf("two switchovers and a look in %s", time.Since(at).Round(time.Millisecond))
	})

	c.Run("lease short", func(t *testing.T) {
		p := c.WaitPrimary(0)
		left := func() float64 {
			s, _ := series(t, p, "matriarch_lease_remaining_seconds")
			return s
		}
		away := others(nodes, p)
		for _, n := range away {
			n.Freeze(testkit.Agent)
		}
		c.Eventually("the alert's metric", func() error { return above(-left(), -2) })
		if r := p.CLI("list"); r.Code == 0 && !strings.Contains(r.Out, "leader") {
			t.Errorf("list does not say that nobody leads:\n%s%s", r.Out, r.Err)
		}
		for _, n := range away {
			n.Thaw(testkit.Agent)
		}
		c.WaitHealthy() // under this primary or another one: the lease may end before the new leader renews it
		p = c.WaitPrimary(0)
		c.Eventually("its end", func() error { p = c.WaitPrimary(0); return above(left(), 2) })
	})

	c.Run("slow disk", func(t *testing.T) { slowDisk(t, c) })
	timelinesAgree(t, c)
}

// slowDisk gives the log of the control plane a disk of its own, as the runbook says, and has it hang for a moment again and again.
func slowDisk(t *testing.T, c *testkit.Cluster) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: needs root")
	}
	for _, tool := range []string{"mkfs.ext4", "fsfreeze", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	n := others(c.Nodes, c.WaitPrimary(0))[0]
	own, image := filepath.Join(c.Dir, n.Name+"-raft"), filepath.Join(c.Dir, n.Name+"-raft.img")
	d := walDisk{t, own}
	n.Interrupt()
	t.Cleanup(func() {
		n.PowerOff()
		_ = exec.Command("fsfreeze", "-u", own).Run() // else everything that touches it hangs for ever
		_ = exec.Command("umount", "-l", own).Run()
	})
	d.sh(fmt.Sprintf("truncate -s 200M %[1]s; mkfs.ext4 -q -m 0 %[1]s; mkdir %[2]s; mount -o loop %[1]s %[2]s; rmdir %[2]s/lost+found; mkdir -m 700 %[2]s/log; mv %[3]s/raft/* %[2]s/log/",
		image, own, n.Dir))
	edit(t, n, func(f *config.Config) { f.RaftDir = own + "/log" })
	n.Start()
	c.WaitHealthy()

	c.Eventually("the alert's metric", func() error {
		if err := leads(t, n); err != nil {
			return fmt.Errorf("%w: %s", err, n.CLI("transfer-leader", n.Name).Err)
		}
		// Also when this test is killed: what touches a frozen disk can never be killed.
		d.sh(fmt.Sprintf("setsid bash -c 'sleep 10; fsfreeze -u %[1]s' >/dev/null 2>&1 </dev/null & fsfreeze -f %[1]s; sleep 1.1; fsfreeze -u %[1]s || true", own)) // that of a turn before may have come first
		slowest, _ := series(t, n, "matriarch_raft_slowest_tick_seconds")
		if err := above(slowest, 1); err != nil {
			return err
		}
		if r := n.CLI("list"); !strings.Contains(r.Out, "slowest tick") { // once it leads no more, it has none
			return fmt.Errorf("list does not show it:\n%s%s", r.Out, r.Err)
		}
		return nil
	})
	if r := n.CLI("doctor"); !strings.Contains(r.Out, "disk-fsync") {
		t.Errorf("doctor does not look at the disk:\n%s%s", r.Out, r.Err)
	}
	mustRun(t, n, "config", "set", "ttl=10s")
	c.WaitHealthy()
	switchOver(c, n, "--yes")
	c.WaitHealthy()
	c.Eventually("a longer lease", func() error {
		left, _ := series(t, c.WaitPrimary(0), "matriarch_lease_remaining_seconds")
		return above(left, 5)
	})
}

func leads(t *testing.T, n *testkit.Node) error {
	if yes, _ := series(t, n, "matriarch_raft_leader"); yes != 1 {
		return fmt.Errorf("%s does not lead", n.Name)
	}
	return nil
}

// configure starts a node anew with a changed file.
func configure(t *testing.T, n *testkit.Node, change func(*config.Config)) {
	t.Helper()
	n.Stop()
	edit(t, n, change)
	n.Start()
}

func edit(t *testing.T, n *testkit.Node, change func(*config.Config)) {
	t.Helper()
	f, err := config.Load(n.Config())
	if err != nil {
		t.Fatal(err)
	}
	change(&f)
	if err := f.Save(n.Config()); err != nil {
		t.Fatal(err)
	}
}

func signal(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatalf("%s to %d: %v", s, pid, err)
	}
}

// series is what a node exports as metric, with these labels.
func series(t *testing.T, n *testkit.Node, metric string, labels ...string) (float64, bool) {
	t.Helper()
next:
	for line := range strings.Lines(scrape(t, n)) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), metric+"{")
		at := strings.LastIndexByte(rest, ' ')
		if !ok || at < 0 {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(rest, l) {
				continue next
			}
		}
		v, err := strconv.ParseFloat(rest[at+1:], 64)
		return v, err == nil
	}
	return 0, false
}

// anybody asks all nodes for what the leader alone exports; -1: nobody does.
func anybody(t *testing.T, c *testkit.Cluster, metric string, labels ...string) float64 {
	t.Helper()
	for _, n := range c.Nodes {
		if v, ok := series(t, n, metric, labels...); ok {
			return v
		}
	}
	return -1
}

func above(v, limit float64) error {
	if v <= limit {
		return fmt.Errorf("%g is not above %g", v, limit)
	}
	return nil
}

func short(left, from, to time.Duration) error {
	if left <= from || left >= to {
		return fmt.Errorf("%s is not between %s and %s", left, from, to)
	}
	return nil
}
