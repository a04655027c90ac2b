package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/testkit"
)

// previous is the commit whose program a formation is upgraded from: the newest one with another version of the commands.
const previous = "9f06f3010aea"

// TestMixedVersions upgrades a formation from the version before, with failovers and switchovers while both are there, and back.
func TestMixedVersions(t *testing.T) {
	t.Parallel()
	older := testkit.BuildOf(t, previous, "v0.9.0-test")
	c := testkit.New(t)
	newer := c.Bin
	c.Bin = older
	c.Bootstrap("n1")
	c.Join(0, "n2", "n3")
	c.WaitHealthy()
	nodes := c.Nodes
	w := c.Write(0)
	run := func(n *testkit.Node, bin string) {
		n.Stop()
		n.Use(bin)
		n.Start()
		knows := map[string]int{older: 1, newer: fsm.Protocol}[bin]
		c.WaitState(n.Name+" tells what it knows", func(st admin.Status) error {
			if k := max(st.State.Nodes[n.ID()].Protocol, 1); k != knows {
				return fmt.Errorf("command version %d, not %d", k, knows)
			}
			return nil
		})
		c.WaitHealthy()
	}

	c.Run("failover and switchover among both", func(t *testing.T) {
		old := c.WaitPrimary(0)
		for _, n := range others(nodes, old)[:1] {
			run(n, newer)
		}
		old.PowerOff()
		c.WaitPrimary(0, old)
		w.WaitAck()
		old.Start()
		c.WaitHealthy()
		for _, to := range nodes { // to the newer and to the older, led by whoever leads
			switchOver(c, nodes[0], "--candidate", to.Name, "--yes")
			c.WaitHealthy()
		}
	})

	c.Run("back to the older", func(t *testing.T) {
		for _, n := range nodes {
			run(n, newer)
		}
		c.Eventually("upgrade status says so", func() error {
			if r := nodes[0].CLI("upgrade", "status"); r.Code != 0 || !strings.Contains(r.Out, "may still go back") {
				return fmt.Errorf("exit %d %s%s", r.Code, r.Out, r.Err)
			}
			return nil
		})
		run(nodes[1], older)
		if r := nodes[0].CLI("upgrade", "finish"); r.Code != 0 || !strings.Contains(r.Out, "nothing to finish") {
			t.Errorf("upgrade finish beside an older node: exit %d %s%s", r.Code, r.Out, r.Err)
		}
		run(nodes[1], newer)
	})

	c.Run("no way back", func(t *testing.T) {
		if r := nodes[0].CLI("upgrade", "finish"); r.Code != 0 {
			t.Fatalf("upgrade finish: exit %d %s%s", r.Code, r.Out, r.Err)
		}
		standby := others(nodes, c.WaitPrimary(0))[0]
		standby.Stop()
		standby.Use(older)
		standby.Start()
		if code := standby.WaitExit(); code == 0 {
			t.Error("an older program met newer state and ended with 0")
		}
		if log := standby.Log(); !strings.Contains(log, "install a newer one") {
			t.Errorf("it does not say what to do:\n%s", log[max(0, len(log)-2000):])
		}
		standby.Use(newer)
		standby.Start()
		c.WaitHealthy()
		w.WaitAck()
	})
	w.Check()
	timelinesAgree(t, c)
}

// TestSnapshotRestore rebuilds the control plane from a file, on a host that has lost all but PostgreSQL's data.
func TestSnapshotRestore(t *testing.T) {
	c, nodes := three(t)
	w := c.Write(0)
	w.WaitAck()
	primary := c.WaitPrimary(0)
	file := filepath.Join(c.Dir, "control.snapshot")
	if r := primary.CLI("snapshot", "save", file); r.Code != 0 {
		t.Fatalf("snapshot save: exit %d %s%s", r.Code, r.Out, r.Err)
	}
	if r := primary.CLI("snapshot", "save", file); r.Code != 1 || !strings.Contains(r.Err, "it exists") {
		t.Errorf("snapshot save over a file: exit %d %s", r.Code, r.Err)
	}
	r := nodes[0].CLI("snapshot", "inspect", file, "--output", "json")
	var view struct {
		Nodes []struct{} `json:"nodes"`
	}
	if err := json.Unmarshal([]byte(r.Out), &view); err != nil || len(view.Nodes) != 3 || strings.Contains(r.Out, "PRIVATE") {
		t.Errorf("snapshot inspect: %v %s%s", err, r.Out, r.Err)
	}
	if r := primary.CLI("snapshot", "restore", file, "--confirm", primary.Name); r.Code != 1 || !strings.Contains(r.Err, "stop it first") {
		t.Errorf("snapshot restore beside a running node: exit %d %s", r.Code, r.Err)
	}
	// What is made after the file is not in it: the epoch of another primary.
	switchOver(c, primary, "--yes")
	c.WaitHealthy()
	w.WaitAck()
	testkit.PowerOff(t, nodes...)

	for _, n := range nodes {
		if err := os.RemoveAll(filepath.Join(n.Dir, "raft")); err != nil {
			t.Fatal(err)
		}
	}
	first := nodes[1]
	for _, lost := range []string{"identity.json", "tls", "secrets", "peers.json"} {
		if err := os.RemoveAll(filepath.Join(first.Dir, lost)); err != nil {
			t.Fatal(err)
		}
	}
	if r := first.Type("yes\n", "snapshot", "restore", file); r.Code != 1 || !strings.Contains(r.Err, "nothing was changed") {
		t.Errorf("unconfirmed restore: exit %d %s", r.Code, r.Err)
	}
	if r := first.Type(first.Name+"\n", "snapshot", "restore", file); r.Code != 0 {
		t.Fatalf("snapshot restore: exit %d %s%s", r.Code, r.Out, r.Err)
	}
	first.Start()
	c.WaitState("the restored node leads a new incarnation", func(st admin.Status) error {
		if st.State.Cluster.Incarnation != 2 || st.Name != first.Name || len(st.State.Nodes) != 3 {
			return fmt.Errorf("incarnation %d, %s leads, %d nodes", st.State.Cluster.Incarnation, st.Name, len(st.State.Nodes))
		}
		return nil
	})
	token := first.NewToken("--uses", "2")
	for _, n := range others(nodes, first) {
		if r := n.JoinOnly(token, first.Peer()); r.Code != 0 {
			t.Fatalf("join %s: exit %d %s%s", n.Name, r.Code, r.Out, r.Err)
		}
		n.Start()
	}
	c.WaitHealthy()
	w.WaitAck()
	if e := c.GroupState(0).Epoch; !(fsm.Epoch{Inc: 2}).Less(e) {
		t.Errorf("epoch %s is none of the new incarnation", e)
	}
	w.Check()
	timelinesAgree(t, c)
}
