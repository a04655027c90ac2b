package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

func (p *program) switchoverVerb() *cli.Command {
	return &cli.Command{
		Name: "switchover", Usage: "hand a group over to a standby without a client error", Category: "Change",
		Description: "Clients of the whole formation wait for some tenths of a second while the primary stops in good order and the standby takes over. Nothing has\n" +
			"changed when it is refused or gives up before the primary stops.\n" +
			"Example:\n   matriarch switchover --group 1\n   matriarch switchover --group 1 --candidate work1-2 --at 2026-03-01T03:00:00Z\n   matriarch switchover --group 1 --cancel",
		Flags: []cli.Flag{
			groupFlag("the group"),
			&cli.StringFlag{Name: "candidate", Usage: "the `NODE` that becomes primary; without: the best standby"},
			&cli.StringFlag{Name: "at", Usage: "wait until this `TIME`, as 2026-03-01T03:00:00Z or 03:00 (today or tomorrow, local time)"},
			&cli.BoolFlag{Name: "cancel", Usage: "drop what is planned, or roll back what has not come to the point of no return"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say who would take over, or what stands against it, and change nothing"},
			&cli.BoolFlag{Name: "force", Usage: "do not ask; transactions in the way of the pause are ended instead of refusing"},
			&cli.DurationFlag{Name: "wait-moves", Usage: "wait up to this `TIME` for shards on the move, and begin then; without: they are a refusal"},
			&cli.DurationFlag{Name: "wait", Usage: "how long to follow what happens", Value: 3 * time.Minute},
			yesFlag(),
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			if !c.IsSet("group") {
				return usagef(c, "--group is missing")
			}
			cl, err := p.connect(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			return p.switchover(c, cl)
		},
	}
}

// maxWaitMoves: meanwhile no other group can switch over.
const maxWaitMoves = 24 * time.Hour

func (p *program) switchover(c *cli.Context, cl cluster) error {
	st, g, err := groupOf(c, cl)
	if err != nil {
		return err
	}
	if c.Bool("cancel") {
		return cancelOperation(c, cl, g)
	}
	op := fsm.Operation{ID: uuid.NewString(), Kind: fsm.Switchover, Force: c.Bool("force"), By: operator(), At: p.now().UTC().Truncate(time.Millisecond)}
	if name := c.String("candidate"); name != "" {
		n, err := nodeNamed(st.State, name)
		if err != nil {
			return err
		}
		op.To = n.ID
	}
	if op.WaitMoves = c.Duration("wait-moves"); op.WaitMoves < 0 || op.WaitMoves > maxWaitMoves {
		return usagef(c, "--wait-moves %s must be 0s to %s", op.WaitMoves, maxWaitMoves)
	}
	if op.Due, err = dueTime(c, c.String("at"), p.now()); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return drySwitch(c, cl, st, g, op.To)
	}
	if err := p.agree(c, fmt.Sprintf("Group %d switches over from %s to %s: clients wait for a moment.", g.ID, nameOr(st.State, g.Lease.Holder, "nobody"), nameOr(st.State, op.To, "its best standby"))); err != nil {
		return err
	}
	return p.operate(c, cl, g, op)
}

// agree asks on a terminal; --force and --yes answer before.
func (p *program) agree(c *cli.Context, question string) error {
	if c.Bool("force") {
		return nil
	}
	return p.confirm(c, "yes", question)
}

func groupOf(c *cli.Context, cl cluster) (admin.Status, fsm.Group, error) {
	st, err := cl.Formation(c.Context)
	if err != nil {
		return st, fsm.Group{}, err
	}
	g, ok := st.State.Groups[fsm.GroupID(c.Int("group"))]
	if !ok {
		return st, g, fmt.Errorf("%s: there is no group %d: %s", c.Command.Name, c.Int("group"), groupNames(admin.NewFormation(st)))
	}
	return st, g, nil
}

func nameOr(s *fsm.State, id fsm.NodeID, or string) string {
	if id == "" {
		return or
	}
	return s.Name(id)
}

// dueTime reads --at: a whole time, or a time of the day that comes next.
func dueTime(c *cli.Context, at string, now time.Time) (time.Time, error) {
	if at == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, at); err == nil {
		if !t.After(now) {
			return t, fmt.Errorf("%s: --at %s is over; it is %s", c.Command.Name, at, now.Format(time.RFC3339))
		}
		return t.UTC(), nil
	}
	clock, err := time.Parse("15:04", at)
	if err != nil {
		return clock, usagef(c, "--at %q is no time: use 2026-03-01T03:00:00Z or 03:00", at)
	}
	t := time.Date(now.Year(), now.Month(), now.Day(), clock.Hour(), clock.Minute(), 0, 0, now.Location())
	if !t.After(now) {
		t = t.AddDate(0, 0, 1)
	}
	return t.UTC(), nil
}

func cancelOperation(c *cli.Context, cl cluster, g fsm.Group) error {
	op := g.Planned
	if op == nil {
		op = g.Op
	}
	if !op.Pausing() {
		return fmt.Errorf("%s: group %d has nothing planned", c.Command.Name, g.ID)
	}
	if err := submit(c, cl, admin.Request{OperationDrop: &fsm.OperationDrop{Group: g.ID, ID: op.ID, Reason: "cancelled by " + operator(), Cancel: true}}); err != nil {
		return err
	}
	return done(c, "the %s of group %d is cancelled", op.Kind, g.ID)
}

func drySwitch(c *cli.Context, cl cluster, st admin.Status, g fsm.Group, to fsm.NodeID) error {
	leader, ok := st.State.Nodes[st.Raft.Leader]
	if !ok {
		return fmt.Errorf("%s: there is no Raft leader just now: see 'matriarch list'", c.Command.Name)
	}
	to, err := cl.WouldSwitch(c.Context, leader, g.ID, to)
	if err != nil {
		return fmt.Errorf("%s would be refused: %w", c.Command.Name, err)
	}
	return done(c, "group %d would switch over from %s to %s; nothing was changed", g.ID, nameOr(st.State, g.Lease.Holder, "nobody"), st.State.Name(to))
}

// operate asks for an operation and follows it to its end.
func (p *program) operate(c *cli.Context, cl cluster, g fsm.Group, op fsm.Operation) error {
	if err := submit(c, cl, admin.Request{OperationPut: &fsm.OperationPut{Group: g.ID, Operation: op}}); err != nil {
		return err
	}
	if !op.Due.IsZero() {
		return done(c, "%s of group %d planned for %s; 'matriarch list' shows it, 'matriarch %s --group %d --cancel' drops it", op.Kind, g.ID, op.Due.Format(time.RFC3339), op.Kind, g.ID)
	}
	show := io.Discard
	if c.String("output") == "table" {
		show = p.out
	}
	last, err := followOperation(c.Context, cl, g.ID, op.ID, show, c.Duration("wait")+op.WaitMoves)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", c.Command.Name, err)
	case !last.Done:
		return fmt.Errorf("%s of group %d was given up: %s", op.Kind, g.ID, last.Outcome)
	}
	return emit(c, last, func(w io.Writer) { fmt.Fprintln(w, last.Outcome) })
}

// followOperation prints each phase that is over, with its time, until the operation is.
func followOperation(ctx context.Context, cl cluster, id fsm.GroupID, op string, w io.Writer, wait time.Duration) (fsm.Operation, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var last fsm.Operation
	printed, phase := 0, fsm.Check
	show := func(o *fsm.Operation) {
		for ; printed < len(o.Steps); printed++ {
			fmt.Fprintf(w, "  %-8s %6d ms\n", o.Steps[printed].Phase, o.Steps[printed].Took)
		}
	}
	err := poll(ctx, func() (bool, error) {
		st, err := cl.Formation(ctx)
		if err != nil {
			return false, nil //nolint:nilerr // nodes may be silent in between
		}
		g, ok := st.State.Groups[id]
		switch {
		case !ok:
			return false, fmt.Errorf("group %d is gone", id)
		case g.LastOp != nil && g.LastOp.ID == op:
			last = *g.LastOp
			show(g.LastOp)
			return true, nil
		case g.Op != nil && g.Op.ID == op:
			phase = g.Op.Phase
			show(g.Op)
		}
		return false, nil
	})
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return last, fmt.Errorf("not finished, in phase %s: watch it with 'matriarch list --watch'", phase)
	}
	return last, err
}
