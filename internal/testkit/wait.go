package testkit

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

// status is the Raft leader's picture.
func (c *Cluster) status() (admin.Status, error) {
	var errs []error
	for _, n := range c.Nodes {
		if !n.Running() {
			continue
		}
		st, err := n.Status()
		switch {
		case err != nil:
			errs = append(errs, err)
		case st.Raft.Leads:
			return st, nil
		}
	}
	return admin.Status{}, errors.Join(append(errs, errors.New("no node leads"))...)
}

// Status is the Raft leader's picture, once there is a leader.
func (c *Cluster) Status() (st admin.Status) {
	c.T.Helper()
	c.Eventually("a node leads", func() (err error) {
		st, err = c.status()
		return err
	})
	return st
}

// Leader is the node that leads.
func (c *Cluster) Leader() *Node {
	c.T.Helper()
	return c.byID(c.Status().Node)
}

// State is the replicated state as the leader has it.
func (c *Cluster) State() *fsm.State {
	c.T.Helper()
	return c.Status().State
}

// GroupState is one group of it.
func (c *Cluster) GroupState(g int) fsm.Group {
	c.T.Helper()
	return c.State().Groups[fsm.GroupID(g)]
}

// WaitPrimary waits until the group has an open primary that runs, other than those named.
func (c *Cluster) WaitPrimary(g int, other ...*Node) (p *Node) {
	c.T.Helper()
	c.Eventually(fmt.Sprintf("group %d has a primary other than %v", g, names(other)), func() error {
		st, err := c.status()
		if err != nil {
			return err
		}
		gr := st.State.Groups[fsm.GroupID(g)]
		p = c.byID(gr.Lease.Holder)
		switch {
		case p == nil || !gr.Opened():
			return fmt.Errorf("no open primary\n%s", describe(st))
		case slices.Contains(other, p) || !p.Running():
			return fmt.Errorf("the primary is %s", p.Name)
		}
		return nil
	})
	return p
}

func names(ns []*Node) []string {
	out := []string{}
	for _, n := range ns {
		out = append(out, n.Name)
	}
	return out
}

// WaitHealthy waits until every node that runs does its work: each group has an open primary, all others stream from it in its
// epoch and confirm commits, and the voters are as many as they should be.
func (c *Cluster) WaitHealthy() {
	c.T.Helper()
	c.Eventually("the cluster is healthy", c.healthy)
}

func (c *Cluster) healthy() error {
	st, err := c.status()
	if err != nil {
		return err
	}
	var bad []string
	for _, id := range st.State.GroupIDs() {
		bad = append(bad, c.unhealthy(st, st.State.Groups[id])...)
	}
	voters := 0
	for _, s := range st.Raft.Suffrage {
		if s == "voter" {
			voters++
		}
	}
	running := 0
	for id := range st.State.Nodes {
		if n := c.byID(id); n != nil && n.Running() {
			running++
		}
	}
	if want := min(5, running-1+running%2); voters < want {
		bad = append(bad, fmt.Sprintf("%d voters, want %d", voters, want))
	}
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("%s\n%s", strings.Join(bad, "; "), describe(st))
}

// unhealthy compares the leader's picture with what each node says of itself: the former may be old.
func (c *Cluster) unhealthy(st admin.Status, g fsm.Group) (bad []string) {
	add := func(format string, args ...any) {
		bad = append(bad, fmt.Sprintf("group %d: ", g.ID)+fmt.Sprintf(format, args...))
	}
	if !g.Opened() || g.Sync.Joint() || g.Sync.Unknown {
		add("no open primary with a settled synchronous set")
		return bad
	}
	others := 0
	for _, m := range st.State.Members(g.ID) {
		n := c.byID(m.ID)
		if n == nil || !n.Running() {
			continue
		}
		own, err := n.Status()
		if err != nil || own.Self == nil {
			add("%s says nothing of itself: %v", m.Name, err)
			continue
		}
		self := own.Self
		if m.ID == g.Lease.Holder {
			if ok, why := own.Writable(); !ok || self.Epoch != g.Epoch || self.Job != "" {
				add("%s is primary of epoch %s: %s %s", m.Name, self.Epoch, why, self.Job)
			} else if self.LeaseLeft < g.Lease.TTL/2 { // the lease may end before a new leader renews it
				add("the lease of %s was not renewed for long, %s are left", m.Name, self.LeaseLeft)
			}
			continue
		}
		others++
		switch {
		case !self.Postgres.Streaming || self.Report.Epoch != g.Epoch:
			add("%s is %s in epoch %s: %s", m.Name, self.Report.State, self.Report.Epoch, self.Reason)
		case self.Job != "" || !self.Report.Open:
			add("%s lets nobody in yet: %s", m.Name, self.Job)
		case !m.Report.SameButLSN(self.Report):
			add("the leader has an old report of %s", m.Name)
		case !g.Sync.Target().Has(m.ID) && !m.Tags.NoSync:
			add("%s confirms nothing yet", m.Name)
		}
	}
	if t := g.Sync.Target(); others > 0 && (t.K != 1 || len(t.S) != others) {
		add("%d of %d confirm, want 1 of %d", t.K, len(t.S), others)
	}
	return bad
}

// WaitState waits for something about the leader's picture.
func (c *Cluster) WaitState(what string, check func(admin.Status) error) {
	c.T.Helper()
	c.Eventually(what, func() error {
		st, err := c.status()
		if err != nil {
			return err
		}
		if err := check(st); err != nil {
			return fmt.Errorf("%w\n%s", err, describe(st))
		}
		return nil
	})
}

// describe is the cluster in some lines, for messages.
func describe(st admin.Status) string {
	var b strings.Builder
	f := admin.NewFormation(st)
	for _, m := range f.Members {
		fmt.Fprintf(&b, "  %d %-8s %-15s %-20s tl %d  receive %s replay %s %s\n", m.Group, m.Name, m.Role, m.State, m.Timeline, m.ReceiveLSN, m.ReplayLSN, m.Suffrage)
	}
	for _, g := range f.Groups {
		fmt.Fprintf(&b, "  group %d: primary %s open %v epoch %s sync %s joint %v; %s: %s\n", g.ID, g.Primary, g.Open, g.Epoch, g.Sync, g.Joint, g.Rule, g.Reason)
	}
	fmt.Fprintf(&b, "  raft: leader %s term %d voters %v\n", f.Raft.Leader, f.Raft.Term, f.Raft.Voters)
	for _, t := range f.Troubles {
		fmt.Fprintf(&b, "  ! %s\n", t)
	}
	return b.String()
}
