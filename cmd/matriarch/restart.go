package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

func (p *program) restartVerb() *cli.Command {
	return &cli.Command{
		Name: "restart", Usage: "restart PostgreSQL without a client error", Category: "Change",
		Description: "Standbys restart one by one, each only after the one before streams again; then the primary, while clients wait as in a switchover.\n" +
			"Example:\n   matriarch restart --group 1\n   matriarch restart --group 1 --node work1-2\n   matriarch restart --all --pending",
		Flags: []cli.Flag{
			groupFlag("the group"),
			&cli.StringFlag{Name: "node", Usage: "only this `NODE`"},
			&cli.BoolFlag{Name: "all", Usage: "the whole formation, standbys first"},
			&cli.BoolFlag{Name: "pending", Usage: "only where a setting waits for a restart"},
			&cli.BoolFlag{Name: "force", Usage: "do not ask; transactions in the way of the pause are ended instead of refusing"},
			&cli.DurationFlag{Name: "wait", Usage: "how long one server may take", Value: 3 * time.Minute},
			yesFlag(),
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			switch {
			case c.Bool("all") && (c.IsSet("group") || c.IsSet("node")):
				return usagef(c, "--all means every group: leave --group and --node out")
			case !c.Bool("all") && !c.IsSet("group") && !c.IsSet("node"):
				return usagef(c, "say what to restart: --group, --node or --all")
			}
			cl, err := p.connect(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			return p.restart(c, cl)
		},
	}
}

func (p *program) restart(c *cli.Context, cl cluster) error {
	st, err := cl.Formation(c.Context)
	if err != nil {
		return err
	}
	standbys, primaries, err := toRestart(c, st)
	if err != nil {
		return err
	}
	if len(standbys)+len(primaries) == 0 {
		return done(c, "nothing to restart")
	}
	var names []string
	for _, n := range slices.Concat(standbys, primaries) {
		names = append(names, n.Name)
	}
	if err := p.agree(c, fmt.Sprintf("PostgreSQL restarts on %s, one after the other.", strings.Join(names, ", "))); err != nil {
		return err
	}
	for _, n := range standbys {
		if err := p.restartStandby(c, cl, n); err != nil {
			return fmt.Errorf("%w; those before it are restarted, those behind it are not: %s", err, strings.Join(names, ", "))
		}
	}
	for _, n := range primaries {
		op := fsm.Operation{ID: uuid.NewString(), Kind: fsm.Restart, Force: c.Bool("force"), By: operator(), At: p.now().UTC().Truncate(time.Millisecond)}
		if err := p.operate(c, cl, st.State.Groups[n.Group], op); err != nil {
			return err
		}
	}
	return nil
}

// toRestart lists the nodes asked for, in the order in which they restart.
func toRestart(c *cli.Context, st admin.Status) (standbys, primaries []fsm.Node, err error) {
	s, only := st.State, fsm.NodeID("")
	if name := c.String("node"); name != "" {
		n, err := nodeNamed(s, name)
		if err != nil {
			return nil, nil, err
		}
		if c.IsSet("group") && n.Group != fsm.GroupID(c.Int("group")) {
			return nil, nil, fmt.Errorf("restart: %s belongs to group %d", n.Name, n.Group)
		}
		only = n.ID
	}
	if _, ok := s.Groups[fsm.GroupID(c.Int("group"))]; c.IsSet("group") && !ok {
		return nil, nil, fmt.Errorf("restart: there is no group %d: %s", c.Int("group"), groupNames(admin.NewFormation(st)))
	}
	for _, id := range s.GroupIDs() {
		for _, n := range s.Members(id) {
			switch {
			case only != "" && n.ID != only || c.IsSet("group") && int(id) != c.Int("group") || n.Postgres == "":
			case c.Bool("pending") && !n.Report.Pending:
			case s.Groups[id].Lease.Holder == n.ID:
				primaries = append(primaries, n)
			default:
				standbys = append(standbys, n)
			}
		}
	}
	return standbys, primaries, nil
}

// restartStandby returns when the node streams again, so that a group loses one standby at a time.
func (p *program) restartStandby(c *cli.Context, cl cluster, n fsm.Node) error {
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("wait"))
	defer cancel()
	began := time.Now()
	before, err := cl.StatusOf(ctx, n)
	if err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	if err := cl.RestartStandby(ctx, n); err != nil {
		return err
	}
	why := "it has not stopped"
	err = poll(ctx, func() (bool, error) {
		st, err := cl.StatusOf(ctx, n)
		if err != nil || st.Self == nil {
			return false, nil //nolint:nilerr // it may be busy
		}
		if before.Self != nil && st.Self.Postmaster == before.Self.Postmaster {
			return false, nil
		}
		why = "it does not stream yet: " + st.Self.Reason
		return st.Self.Report.State == "streaming", nil
	})
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = fmt.Errorf("restart %s: %s: see 'matriarch explain %s'", n.Name, why, n.Name)
	}
	if err != nil {
		return err
	}
	text := fmt.Sprintf("restarted %s, a standby of group %d, in %d ms", n.Name, n.Group, time.Since(began).Milliseconds())
	return emit(c, map[string]string{"done": text}, func(w io.Writer) { fmt.Fprintln(w, text) })
}
