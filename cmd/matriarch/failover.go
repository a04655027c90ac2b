package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

func (p *program) failoverVerb() *cli.Command {
	return &cli.Command{
		Name: "failover", Usage: "give a group another primary", Category: "Change",
		Description: "Takes the lease from the present primary, if there is one, and elects another that has every acknowledged commit. Clients see a short break.\n" +
			"--trust is for a group whose synchronous set is unknown after 'matriarch recover': the candidate's data counts, whatever others have.\n" +
			"--accept-data-loss is for a candidate that lacks acknowledged commits, when those who have them are gone: it says how many bytes are given up.\n" +
			"Example:\n   matriarch failover --group 1 --candidate work1-2",
		Flags: []cli.Flag{
			groupFlag("the group"),
			&cli.StringFlag{Name: "candidate", Usage: "the `NODE` that becomes primary; without: the best standby"},
			&cli.BoolFlag{Name: "trust", Usage: "declare the candidate's data to be the truth"},
			&cli.BoolFlag{Name: "accept-data-loss", Usage: "the candidate wins even if it lacks acknowledged commits"},
			&cli.DurationFlag{Name: "wait", Usage: "how long to follow what happens", Value: time.Minute},
			yesFlag(),
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			if !c.IsSet("group") {
				return usagef(c, "--group is missing")
			}
			if c.Bool("trust") && c.String("candidate") == "" {
				return usagef(c, "--trust needs --candidate: whose data is to be trusted")
			}
			if c.Bool("accept-data-loss") && (c.String("candidate") == "" || c.Bool("trust")) {
				return usagef(c, "--accept-data-loss needs --candidate, and goes without --trust")
			}
			cl, err := p.connect(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			return p.failover(c, cl)
		},
	}
}

func (p *program) failover(c *cli.Context, cl cluster) error {
	st, err := cl.Formation(c.Context)
	if err != nil {
		return err
	}
	id := fsm.GroupID(c.Int("group"))
	g, ok := st.State.Groups[id]
	if !ok {
		return fmt.Errorf("failover: there is no group %d: %s", id, groupNames(admin.NewFormation(st)))
	}
	to, err := candidate(c, st, g)
	if err != nil {
		return err
	}
	if err := p.confirm(c, "yes", failoverQuestion(c, st, g, to)); err != nil {
		return err
	}
	op := fsm.Operation{ID: uuid.NewString(), Kind: "failover", To: to, Trust: c.Bool("trust"), AcceptLoss: c.Bool("accept-data-loss"), By: operator(), At: p.now().UTC().Truncate(time.Millisecond)}
	began := time.Now()
	if err := submit(c, cl, admin.Request{OperationPut: &fsm.OperationPut{Group: id, Operation: op}}); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := follow(ctx, cl, g, op.ID, c.Duration("wait"))
	if err != nil {
		return err
	}
	return reportFailover(c, g, s, time.Since(began))
}

// candidate is the node named, or the best standby when the group has a primary that would otherwise win again.
func candidate(c *cli.Context, st admin.Status, g fsm.Group) (fsm.NodeID, error) {
	if name := c.String("candidate"); name != "" {
		n, err := nodeNamed(st.State, name)
		return n.ID, err
	}
	if !g.Held() {
		return "", nil
	}
	best := bestStandby(st, g.ID)
	if best == "" {
		return "", fmt.Errorf("failover: group %d has no standby that could take over from %s", g.ID, st.State.Name(g.Lease.Holder))
	}
	return best, nil
}

// bestStandby guesses by the last reports; the election itself goes by what the members answer.
func bestStandby(st admin.Status, id fsm.GroupID) fsm.NodeID {
	var best admin.Member
	for _, m := range admin.Members(st) {
		n := st.State.Nodes[m.ID]
		if m.Group != id || m.Role == admin.RolePrimary || m.Silent || n.Tags.NoFailover || m.State != "streaming" {
			continue
		}
		better := best.ID == "" || (m.Role == admin.RoleQuorumStandby && best.Role != admin.RoleQuorumStandby) ||
			(m.Role == best.Role && n.Tags.FailoverPriority > st.State.Nodes[best.ID].Tags.FailoverPriority)
		if better {
			best = m
		}
	}
	return best.ID
}

func failoverQuestion(c *cli.Context, st admin.Status, g fsm.Group, to fsm.NodeID) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Group %d fails over", g.ID)
	if g.Held() {
		fmt.Fprintf(&b, " from %s", st.State.Name(g.Lease.Holder))
	}
	if to != "" {
		fmt.Fprintf(&b, " to %s", st.State.Name(to))
	}
	b.WriteString(": open transactions end with an error.")
	if c.Bool("trust") {
		fmt.Fprintf(&b, " Commits that %s does not have are given up.", st.State.Name(to))
	}
	if c.Bool("accept-data-loss") {
		b.WriteString(" " + lossText(st.State, g, to))
	}
	return b.String()
}

// lossText says what a candidate lacks by the last reports. They are up to some seconds old: it may be less, and it may be more.
func lossText(s *fsm.State, g fsm.Group, to fsm.NodeID) string {
	var most fsm.Node
	c := s.Nodes[to]
	for _, n := range s.Members(g.ID) {
		if a, b := n.Report, most.Report; a.Timeline > b.Timeline || a.Timeline == b.Timeline && reported(a) > reported(b) {
			most = n
		}
	}
	switch ahead, have := reported(most.Report), reported(c.Report); {
	case have == 0 || ahead == 0:
		return fmt.Sprintf("How much %s lacks is not known: every commit that it does not have is lost.", c.Name)
	case most.Report.Timeline != c.Report.Timeline:
		return fmt.Sprintf("%s stands on timeline %d at %s and %s on timeline %d at %s: everything since they parted is lost, %d bytes or more.", c.Name, c.Report.Timeline, have, most.Name, most.Report.Timeline, ahead, max(int64(ahead)-int64(have), 0))
	case ahead > have:
		return fmt.Sprintf("By the last reports %s lacks %d bytes that %s has: commits in them are LOST, though acknowledged, as are later ones that nobody reported.", c.Name, ahead-have, most.Name)
	}
	return fmt.Sprintf("By the last reports %s lacks 0 bytes; commits after them that it does not have are LOST, though acknowledged.", c.Name)
}

func reported(r fsm.Report) fsm.LSN { return max(r.Receive, r.Replay) }

// follow waits until the group has an open primary in a later epoch, or the operation was given up.
func follow(ctx context.Context, cl cluster, before fsm.Group, op string, wait time.Duration) (*fsm.State, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var s *fsm.State
	var last admin.Status
	err := poll(ctx, func() (bool, error) {
		st, err := cl.Formation(ctx)
		if err != nil {
			return false, nil //nolint:nilerr // nodes may be silent in between
		}
		last, s = st, st.State
		g, ok := s.Groups[before.ID]
		switch {
		case !ok:
			return false, fmt.Errorf("failover: group %d is gone", before.ID)
		case before.Epoch.Less(g.Epoch):
			return g.Opened(), nil
		case g.Op == nil || g.Op.ID != op:
			return droppedOp(s, before.ID)
		}
		return false, nil
	})
	if err != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		reason := "nobody answers"
		if p, ok := last.Plans[before.ID]; ok {
			reason = p.Reason
		}
		return nil, fmt.Errorf("failover: not finished, and still asked for: %s: watch it with 'matriarch list --watch'", reason)
	}
	return s, err
}

// droppedOp tells a given-up operation from one that this node has not heard of yet.
func droppedOp(s *fsm.State, g fsm.GroupID) (bool, error) {
	for _, h := range slices.Backward(s.History[g]) {
		if h.Kind != "operation" {
			continue
		}
		if why, ok := strings.CutPrefix(h.Text, "given up: "); ok {
			return false, fmt.Errorf("failover was given up: %s", why)
		}
		return false, nil
	}
	return false, nil
}

func reportFailover(c *cli.Context, before fsm.Group, s *fsm.State, took time.Duration) error {
	g := s.Groups[before.ID]
	last, _ := g.LastGrant()
	v := struct {
		Group    fsm.GroupID  `json:"group"`
		From     string       `json:"from,omitempty"`
		Primary  string       `json:"primary"`
		Epoch    string       `json:"epoch"`
		Timeline fsm.Timeline `json:"timeline"`
		TookMS   int64        `json:"took_ms"`
	}{g.ID, "", s.Name(g.Lease.Holder), g.Epoch.String(), last.Timeline, took.Milliseconds()}
	if before.Held() {
		v.From = s.Name(before.Lease.Holder)
	}
	err := emit(c, v, func(w io.Writer) {
		fmt.Fprintf(w, "group %d: %s is primary, epoch %s, timeline %d, after %d ms", v.Group, v.Primary, v.Epoch, v.Timeline, v.TookMS)
		if v.From != "" {
			fmt.Fprintf(w, "; it was %s", v.From)
		}
		fmt.Fprintln(w)
	})
	if err == nil && before.Held() && g.Lease.Holder == before.Lease.Holder {
		return fmt.Errorf("failover: %s was elected again: see 'matriarch explain --group %d'", v.Primary, g.ID)
	}
	return err
}
