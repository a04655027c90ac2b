package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/internal/testkit"
)

// sickSettings let a test see several handovers.
func sickSettings(t *testing.T, c *testkit.Cluster, settings ...string) {
	t.Helper()
	if r := c.Nodes[0].CLI(append([]string{"config", "set"}, settings...)...); r.Code != 0 {
		t.Fatalf("%s%s", r.Out, r.Err)
	}
}

// says waits until list, asked on one node, has the words.
func listSays(c *testkit.Cluster, on *testkit.Node, words string) {
	c.T.Helper()
	c.Eventually("list says "+words, func() error {
		if r := on.CLI("list"); !strings.Contains(r.Out, words) {
			return fmt.Errorf("it says:\n%s%s", r.Out, r.Err)
		}
		return nil
	})
}

func isSick(n *testkit.Node, st status) string { return st.State.Nodes[n.ID()].Report.Sick }

func waitSick(c *testkit.Cluster, n *testkit.Node, reason string) {
	c.T.Helper()
	c.WaitState(fmt.Sprintf("%s is sick: %q", n.Name, reason), func(st status) error {
		if have := isSick(n, st); have != reason {
			return fmt.Errorf("it is %q", have)
		}
		return nil
	})
}

// taken tells how often the group was taken from a sick primary, by its history.
func taken(c *testkit.Cluster) (n int) {
	for _, h := range c.State().History[0] {
		if h.Kind == "revoked" && strings.Contains(h.Text, "is sick: ") || h.Kind == "operation" && strings.Contains(h.Text, "asked for by matriarch, as the primary is sick") {
			n++
		}
	}
	return n
}

// TestSickPostmaster: a postmaster that is stopped takes no new session, though the old ones go on. The group is taken from it once, and
// not again while it cools down.
func TestSickPostmaster(t *testing.T) {
	c, _ := three(t)
	w := c.Write(0)
	var old, second *testkit.Node

	c.Run("out of memory", func(t *testing.T) {
		moved, told := false, false
		for try := 0; try < 3 && (!moved || !told); try++ {
			old = c.WaitPrimary(0)
			epoch := c.GroupState(0).Epoch
			conn, err := old.Connect(t.Context(), "postgres")
			if err != nil {
				t.Fatal(err)
			}
			var pid int
			if err := conn.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
				t.Fatal(err)
			}
			limitMemory(t, pid, 64<<20)
			at := time.Now()
			if _, err := conn.Exec(t.Context(), "SELECT length(repeat('x', 900000000))"); err == nil {
				t.Fatal("the kernel let a session have it")
			}
			moved = waitNext(c, epoch) != old || moved // its agent lives: it is elected again if it is back first
			w.WaitAck()
			if gap, _ := w.Gap(at); try == 0 { // so soon again, a group whose holder lives stays where it is
				within(t, "the gap after the kernel ended one session", gap, 2*time.Second+slack)
			}
			// The lease does not wait for a log that is read slowly.
			told = strings.Contains(fmt.Sprint(c.State().History[0]), "was terminated by signal 9") || told
			c.WaitHealthy()
		}
		if !moved || !told {
			t.Errorf("another took over: %t; the history says why: %t: %v", moved, told, c.State().History[0])
		}
	})

	c.Run("handed over", func(t *testing.T) {
		old = c.WaitPrimary(0)
		at := old.Freeze(testkit.Postmaster)
		second = c.WaitPrimary(0, old)
		w.WaitAck()
		gap, _ := w.Gap(at)
		within(t, "the gap of the writer, whose session went on at first,", gap, 3*time.Second+slack)
		if first, ok := w.FirstOn(second, at); ok {
			within(t, "handing over from "+old.Name, first.Sub(at), 12*time.Second+slack)
		}
		history := fmt.Sprint(c.State().History[0])
		if !strings.Contains(history, old.Name+" is sick: its postmaster is stopped (SIGSTOP") {
			t.Errorf("the history does not say why: %s", history)
		}
		c.WaitHealthy() // fencing has killed it, and it began again as a standby
		waitSick(c, old, "")
		if n := taken(c); n != 1 {
			t.Errorf("taken %d times, want 1", n)
		}
	})

	c.Run("not again", func(t *testing.T) {
		sickSettings(t, c, "--group", "0", "early_failover=false") // a stopped postmaster is half of its evidence
		epoch := c.GroupState(0).Epoch
		conn, err := second.Connect(t.Context(), testkit.Database) // the writer gives its session up when a write takes 2 s
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		second.Freeze(testkit.Postmaster)
		waitSick(c, second, "stopped")
		listSays(c, old, "it stays primary: the group was taken from a sick primary")
		if r := second.CLI("status", second.Name); !strings.Contains(r.Out, "SIGCONT lets it go on") {
			t.Errorf("status says:\n%s%s", r.Out, r.Err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := conn.Exec(ctx, "INSERT INTO local_numbers VALUES (-1)"); err != nil {
			t.Errorf("a session that was there does not go on: %v", err)
		}
		second.Thaw(testkit.Postmaster)
		w.WaitAck()
		waitSick(c, second, "")
		if now := c.GroupState(0).Epoch; now != epoch || taken(c) != 1 {
			t.Errorf("epoch %s became %s; taken %d times, want 1", epoch, now, taken(c))
		}
	})

	c.Run("switched off", func(t *testing.T) {
		sickSettings(t, c, "--group", "0", "failover_on_sick=false")
		sickSettings(t, c, "sick_cooldown=10s", "sick_after=2s")
		second.Freeze(testkit.Postmaster)
		listSays(c, old, "it stays primary: failover_on_sick is off")
		second.Thaw(testkit.Postmaster)
		waitSick(c, second, "")
		if taken(c) != 1 {
			t.Errorf("taken %d times, want 1", taken(c))
		}
	})
	w.Check()
	timelinesAgree(t, c)
}

// limitMemory moves a process to where it may have so many bytes; the kernel ends it when it takes more.
func limitMemory(t *testing.T, pid, bytes int) {
	t.Helper()
	group, limit := fmt.Sprintf("/sys/fs/cgroup/memory/matriarch-test-%d", pid), "memory.limit_in_bytes"
	if _, err := os.Stat(filepath.Dir(group)); err != nil {
		group, limit = fmt.Sprintf("/sys/fs/cgroup/matriarch-test-%d", pid), "memory.max"
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skipf("no group of processes can be given a limit here: %v", err)
	}
	t.Cleanup(func() { _ = os.Remove(group) })
	if err := os.WriteFile(filepath.Join(group, limit), fmt.Append(nil, bytes), 0o644); err != nil {
		t.Skipf("the kernel limits no memory here: %v", err)
	}
	_ = os.WriteFile(filepath.Join(group, "memory.swap.max"), []byte("0"), 0o644)
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Append(nil, pid), 0o644); err != nil {
		t.Fatal(err)
	}
}

// walDisk is a small file system of its own for a node's pg_wal.
type walDisk struct {
	t  *testing.T
	at string
}

func (d walDisk) sh(script string) {
	d.t.Helper()
	if out, err := exec.Command("bash", "-ec", script).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

const walDiskMB = 960

// ownWAL moves the log of a standby to a disk of its own.
func ownWAL(t *testing.T, c *testkit.Cluster, n *testkit.Node) walDisk {
	t.Helper()
	d := walDisk{t, filepath.Join(n.DataDir(), "pg_wal")}
	image, between := filepath.Join(c.Dir, n.Name+".img"), filepath.Join(c.Dir, n.Name+".wal")
	n.Interrupt()
	t.Cleanup(func() {
		_ = exec.Command("fsfreeze", "-u", d.at).Run() // else everything that touches it hangs for ever
		_ = exec.Command("umount", "-l", d.at).Run()
	})
	d.sh(fmt.Sprintf(`truncate -s %dM %[2]s; mkfs.ext4 -q -m 0 %[2]s; mkdir %[3]s; mount -o loop,errors=remount-ro %[2]s %[3]s
		rmdir %[3]s/lost+found; cp -a %[4]s/. %[3]s/; chown --reference=%[4]s %[3]s; chmod 700 %[3]s; umount %[3]s
		mount -o loop,errors=remount-ro %[2]s %[4]s`, walDiskMB, image, between, d.at))
	n.Start()
	c.WaitHealthy()
	return d
}

// fill leaves so many megabytes; ease takes the filling out.
func (d walDisk) fill(leave int) {
	d.t.Helper()
	d.sh(fmt.Sprintf(`free=$(df --output=avail -B1M %[1]s | tail -1); fallocate -l $((free - %[2]d))M %[1]s/filling || true
		[ %[2]d -gt 0 ] || dd if=/dev/zero of=%[1]s/rest bs=4k 2>/dev/null || true`, d.at, leave))
}

func (d walDisk) ease() { d.t.Helper(); d.sh("rm -f " + d.at + "/filling " + d.at + "/rest") }

// primaryOn makes a node the primary, once the group has cooled down.
func primaryOn(c *testkit.Cluster, n *testkit.Node) {
	c.T.Helper()
	c.WaitState("the group has cooled down", func(st status) error {
		for _, x := range st.State.Nodes {
			if at := x.Report.SickAt; time.Since(at) < st.State.Cluster.Settings.Cooldown() {
				return fmt.Errorf("%s was sick %s ago", x.Name, time.Since(at))
			}
		}
		return nil
	})
	if c.WaitPrimary(0) != n {
		switchOver(c, c.Nodes[0], "--candidate", n.Name, "--yes")
	}
	c.WaitHealthy()
}

// TestSickDisk: what can happen to the disk of a primary's log. Each time a standby takes over, nothing acknowledged is lost, list says
// why, and after the cure the node is back.
func TestSickDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts file systems: needs root")
	}
	for _, tool := range []string{"mkfs.ext4", "fsfreeze", "fallocate", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	c, nodes := three(t)
	d := ownWAL(t, c, nodes[1])
	sick, other := nodes[1], nodes[0]
	sickSettings(t, c, "sick_after=3s", "sick_cooldown=1s")
	w := c.Write(0)

	// chapter makes the node primary, breaks its disk, and expects a handover that takes clients no longer than gap.
	chapter := func(name, reason, words string, limit time.Duration, breakIt, cure func()) {
		c.Run(name, func(t *testing.T) {
			d.t = t
			primaryOn(c, sick)
			at := time.Now()
			breakIt()
			next := c.WaitPrimary(0, sick)
			w.WaitAck()
			gap, _ := w.Gap(at)
			within(t, "the gap after: "+name, gap, limit+slack)
			waitSick(c, sick, reason)
			listSays(c, other, sick.Name+" is sick: "+words)
			epoch := c.GroupState(0).Epoch
			cure()
			waitSick(c, sick, "")
			c.WaitHealthy()
			if now := c.GroupState(0); (now.Epoch != epoch || now.Lease.Holder != next.ID()) && !stoodStill(c.State(), epoch) {
				t.Errorf("epoch %s of %s became %s of %s", epoch, next.Name, now.Epoch, c.State().Name(now.Lease.Holder))
			}
			lastOf(t, c, "well")
		})
	}
	chapter("nearly full", "disk_full", "the disk of "+d.at+" is full", time.Second, func() { d.fill(24) }, func() { d.ease() })
	if op := c.GroupState(0).LastOp; !t.Failed() && (op == nil || !op.Sick || !op.Done) {
		t.Errorf("no switchover in good order: %+v", op)
	}
	chapter("full at once", "disk_full", "the disk of "+d.at+" is full", 6*time.Second, func() {
		d.fill(0)
		go sick.SwitchWAL() // the next segment does not fit
	}, func() { d.ease() })
	chapter("hangs", "disk_hangs", "processes of it do not end although they were killed", 9*time.Second, func() {
		// Also when this test is killed: what touches a frozen disk can never be killed.
		d.sh(fmt.Sprintf("setsid bash -c 'sleep 120; fsfreeze -u %[1]s' >/dev/null 2>&1 </dev/null & fsfreeze -f %[1]s", d.at))
	}, func() { d.sh("fsfreeze -u " + d.at) })
	chapter("read-only after an error", "read_only", "the file system of "+d.at+" is read-only", 6*time.Second, func() {
		d.sh(fmt.Sprintf("echo 1 > /sys/fs/ext4/$(basename $(findmnt -no SOURCE %s))/trigger_fs_error", d.at))
	}, func() {
		sick.PowerOff()
		defer sick.Start()
		d.sh(fmt.Sprintf("umount %[1]s; fsck.ext4 -fy %[2]s >/dev/null || [ $? -le 2 ]; mount -o loop,errors=remount-ro %[2]s %[1]s", d.at, filepath.Join(c.Dir, sick.Name+".img")))
	})
	w.Check()
	timelinesAgree(t, c)
}

// lastOf finds the newest line of a kind in the history.
func lastOf(t *testing.T, c *testkit.Cluster, kind string) fsm.History {
	t.Helper()
	var last fsm.History
	for _, h := range c.State().History[0] {
		if h.Kind == kind {
			last = h
		}
	}
	if last.Kind == "" {
		t.Errorf("nothing of kind %s in the history", kind)
	}
	return last
}
