package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/identity"
	"matriarch/internal/testkit"
	"matriarch/transport"
)

// rotation is a replacement of the CA that stops anywhere: it asks the nodes one by one, as 'matriarch ca rotate' does.
type rotation struct {
	t         *testing.T
	ca        string
	cert, key []byte
}

func newRotation(t *testing.T, n *testkit.Node) rotation {
	t.Helper()
	id, err := identity.Dir(n.Dir).Load()
	if err != nil {
		t.Fatal(err)
	}
	ca, err := transport.NewCA(id.ClusterID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	return rotation{t, ca.Fingerprint(), ca.CertPEM(), key}
}

// step has nodes take a step.
func (r rotation) step(do string, nodes ...*testkit.Node) {
	r.t.Helper()
	for _, n := range nodes {
		if _, err := r.ask(do, n); err != nil {
			r.t.Fatalf("%s: %v", do, err)
		}
	}
}

func (r rotation) ask(do string, n *testkit.Node) (admin.KeysAnswer, error) {
	dir := identity.Dir(n.Dir)
	self, err := dir.Load()
	if err != nil {
		return admin.KeysAnswer{}, err
	}
	tls, err := dir.TLS()
	if err != nil {
		return admin.KeysAnswer{}, err
	}
	cl := admin.NewClient(self, nil, transport.NewClient(&transport.Dialer{Network: transport.TCP{}, Identity: tls}))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	req := admin.KeysRequest{Do: do, CA: r.ca}
	if do == admin.KeysTrust {
		req.Cert, req.Key = r.cert, r.key
	}
	return cl.Keys(ctx, fsm.Node{ID: self.NodeID, Name: self.Name, Peer: n.Peer()}, req)
}

// trusted are the CAs that a node trusts by what is on its disk.
func trusted(t *testing.T, n *testkit.Node) []string {
	t.Helper()
	bundle, err := identity.Dir(n.Dir).Trusted()
	if err != nil {
		t.Fatal(err)
	}
	all, err := transport.Fingerprints(bundle)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// only fails unless this CA is the only one that the nodes trust.
func only(t *testing.T, ca string, nodes ...*testkit.Node) {
	t.Helper()
	for _, n := range nodes {
		if all := trusted(t, n); len(all) != 1 || all[0] != ca {
			t.Errorf("%s trusts %v, want %s", n.Name, all, ca)
		}
	}
}

// TestRotationInterrupted stops the replacement of the CA in each of its steps, with some nodes having taken it and others not, and then
// ends an agent, a host or the command itself. The formation stays whole, and the command, run again, goes on or goes back.
func TestRotationInterrupted(t *testing.T) {
	c, nodes := three(t)
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	mustRun(t, n1, "config", "set", "--group", "0", "early_failover=false") // a machine that stands still shall cost nothing here
	w := c.Write(0)
	began, failed, inTime := time.Now(), len(w.Refused()), true
	unharmed := func(t *testing.T) {
		t.Helper()
		c.WaitHealthy()
		w.WaitAck()
		now := w.Refused()
		if len(now) > failed {
			t.Errorf("the writer met %v", now[failed:])
		}
		failed = len(now)
	}
	p := c.WaitPrimary(0)

	again := func(n *testkit.Node) {
		if n != p {
			n.Kill9(testkit.Agent)
			n.Start()
			return
		}
		renewed(c, p)
		epoch, at := c.GroupState(0).Epoch, p.Kill9(testkit.Agent)
		p.Start()
		if !returned(c, p, epoch, at) {
			c.T.Log("the agent was away for too long on this machine: whether anybody notices is not judged")
			c.WaitHealthy()
			w.WaitAck()
			inTime, failed, p = false, len(w.Refused()), c.WaitPrimary(0)
		}
	}
	for _, x := range []struct {
		step  string
		done  []string
		first *testkit.Node // the one that took the step before it all stopped
		hit   func()
	}{
		{admin.KeysTrust, nil, n1, func() { again(c.Leader()) }},
		{admin.KeysSign, []string{admin.KeysTrust}, n2, func() { again(p) }},
		{admin.KeysDrop, []string{admin.KeysTrust, admin.KeysSign}, n3, func() { again(c.Leader()) }},
	} {
		c.Run(x.step+", then an agent dies, "+x.first.Name, func(t *testing.T) {
			r := newRotation(t, n1)
			for _, s := range x.done {
				r.step(s, nodes...)
			}
			r.step(x.step, x.first)
			x.hit()
			unharmed(t)
			ok(t, others(nodes, x.first)[0].CLI("ca", "rotate", "--yes"))
			only(t, r.ca, nodes...)
			unharmed(t)
		})
	}

	for _, x := range []struct {
		step string
		done []string
	}{{admin.KeysTrust, nil}, {admin.KeysSign, []string{admin.KeysTrust}}, {admin.KeysDrop, []string{admin.KeysTrust, admin.KeysSign}}} {
		c.Run(x.step+", and a host is dead", func(t *testing.T) {
			r := newRotation(t, n1)
			for _, s := range x.done {
				r.step(s, nodes...)
			}
			standby := others(nodes, p)[0]
			standby.PowerOff()
			r.step(x.step, others(nodes, standby)...)
			if res := p.CLI("ca", "rotate", "--yes"); res.Code != 1 || !strings.Contains(res.Err, standby.Name) || !strings.Contains(res.Err, "bring it back or remove it") {
				t.Errorf("exit %d\n%s%s", res.Code, res.Out, res.Err)
			}
			standby.Start()
			unharmed(t)
			ok(t, standby.CLI("ca", "rotate", "--yes"))
			only(t, r.ca, nodes...)
		})
	}

	c.Run("the command is killed", func(t *testing.T) {
		before := trusted(t, n1)[0]
		cmd := exec.CommandContext(t.Context(), c.Bin, "--config", n1.Config(), "ca", "rotate", "--yes")
		says, err := cmd.StderrPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(says).ReadString('\n')
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err != nil || !strings.Contains(line, "trusts the new CA too") {
			t.Fatalf("%q %v", line, err)
		}
		unharmed(t)
		ok(t, n2.CLI("ca", "rotate", "--yes"))
		now := trusted(t, n1)
		if len(now) != 1 || now[0] == before {
			t.Errorf("n1 trusts %v, before %s", now, before)
		}
		only(t, now[0], nodes...)
	})

	c.Run("two at once, and back", func(t *testing.T) {
		before := trusted(t, n1)[0]
		newRotation(t, n1).step(admin.KeysTrust, n1)
		newRotation(t, n2).step(admin.KeysTrust, n2)
		if res := n3.CLI("ca", "rotate", "--yes"); res.Code != 1 || !strings.Contains(res.Err, "--abandon") {
			t.Errorf("exit %d\n%s%s", res.Code, res.Out, res.Err)
		}
		ok(t, n3.CLI("ca", "rotate", "--abandon", "--yes"))
		only(t, before, nodes...)
		unharmed(t)
		r := newRotation(t, n1)
		r.step(admin.KeysTrust, nodes...)
		// A node that joins now is as far as the one that takes it in.
		c.Token = n1.NewToken()
		n4 := c.Join(0, "n4")[0]
		c.WaitHealthy()
		if all := trusted(t, n4); len(all) != 2 {
			t.Errorf("the newcomer trusts %v", all)
		}
		r.step(admin.KeysSign, n1)
		if res := n3.CLI("ca", "rotate", "--abandon", "--yes"); res.Code != 1 || !strings.Contains(res.Err, "only forward") {
			t.Errorf("exit %d\n%s%s", res.Code, res.Out, res.Err)
		}
		unharmed(t)
		ok(t, n4.CLI("ca", "rotate", "--yes"))
		only(t, r.ca, c.Nodes...)
		unharmed(t)
	})

	if gap, _ := w.Gap(began); inTime {
		within(t, "the longest pause of the writer", gap, 2*time.Second+slack)
	}

	c.Run("a node is away all the time", func(t *testing.T) {
		p := c.WaitPrimary(0)
		standby := others(nodes, p)[0]
		inode := identityOf(t, standby.DataDir())
		standby.PowerOff()
		c.WaitHealthy()
		ok(t, p.CLI("ca", "rotate", "--force", "--yes"))
		standby.Start()
		c.Eventually("it says why it is shut out", func() error {
			if !strings.Contains(standby.Log(), "that one joins again") {
				return fmt.Errorf("not in its log")
			}
			return nil
		})
		if res := standby.CLI("doctor"); res.Code != 1 || !strings.Contains(res.Err+res.Out, "join it again") {
			t.Errorf("doctor: exit %d\n%s%s", res.Code, res.Out, res.Err)
		}
		c.Eventually("it is taken in again", func() error { // the leader may move meanwhile
			if r := standby.JoinOnly(p.NewToken("--uses", "1"), p.Peer()); r.Code != 0 {
				return fmt.Errorf("exit %d: %s", r.Code, r.Err)
			}
			return nil
		})
		standby.Stop()
		standby.Start()
		c.WaitHealthy()
		only(t, trusted(t, p)[0], c.Nodes...)
		if now := identityOf(t, standby.DataDir()); now != inode {
			t.Error("its data was made anew")
		}
		w.WaitAck()
	})
	w.Check()
}

// identityOf tells a data directory from another that took its place.
func identityOf(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.Stat(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		t.Fatal(err)
	}
	return b.ModTime().String()
}
