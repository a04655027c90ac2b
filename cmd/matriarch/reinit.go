package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/agent"
)

func (p *program) reinitVerb() *cli.Command {
	return &cli.Command{
		Name: "reinit", Usage: "clone a standby anew", ArgsUsage: "NODE", Category: "Change",
		Description: "The node's data directory is set aside once the clone is complete; until then both need room. Refused for a primary, when the disk is too small, and when\n" +
			"postgresql.set_aside_limit directories are kept that may hold writes the group does not have.\n" +
			"Example:\n   matriarch reinit work1-2 --wait\n   matriarch reinit work1-2 --from work1-3",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "from", Usage: "clone from this `NODE`, a standby that streams, to spare the primary"},
			&cli.BoolFlag{Name: "wait", Usage: "show the progress and return when the node streams"},
			yesFlag(),
		},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "NODE")
			if err != nil {
				return err
			}
			cl, err := p.connect(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			return p.reinit(c, cl, args[0])
		},
	}
}

func (p *program) reinit(c *cli.Context, cl cluster, name string) error {
	st, err := cl.Formation(c.Context)
	if err != nil {
		return err
	}
	n, err := nodeNamed(st.State, name)
	if err != nil {
		return err
	}
	var from fsm.Node
	if c.IsSet("from") {
		if from, err = nodeNamed(st.State, c.String("from")); err != nil {
			return err
		}
	}
	src, err := agent.CloneSource(st.State, n.ID, from.ID)
	if err != nil {
		return fmt.Errorf("reinit %s: %w", n.Name, err)
	}
	if err := p.agree(c, fmt.Sprintf("PostgreSQL of %s is stopped, cloned anew from %s, and its data directory set aside.", n.Name, src.Name)); err != nil {
		return err
	}
	before, err := cl.StatusOf(c.Context, n)
	if err != nil {
		return fmt.Errorf("reinit: %w", err)
	}
	if err := cl.Reinit(c.Context, n, from.ID); err != nil {
		return err
	}
	if !c.Bool("wait") {
		return done(c, "%s is being cloned from %s: 'matriarch list' shows the progress", n.Name, src.Name)
	}
	began := time.Now()
	if err := p.followClone(c.Context, cl, n, before); err != nil {
		return err
	}
	return done(c, "%s was cloned from %s in %s and streams", n.Name, src.Name, time.Since(began).Round(time.Second))
}

// followClone shows the progress until the node streams again, with another server than before.
func (p *program) followClone(ctx context.Context, cl cluster, n fsm.Node, before admin.Status) error {
	var shown, why string
	err := poll(ctx, func() (bool, error) {
		st, err := cl.StatusOf(ctx, n)
		if err != nil || st.Self == nil {
			return false, nil //nolint:nilerr // it may be busy
		}
		self := st.Self
		if why = self.Reason; self.Failed != "" {
			why = self.Failed
		}
		text := self.Report.State + admin.Progress(self.Report)
		if self.Failed != "" && self.Job == "" {
			text = self.Failed
		}
		same := before.Self != nil && before.Self.Postmaster == self.Postmaster
		if text != shown && !same {
			shown = text
			say(p.err, n.Name, text)
		}
		return self.Report.State == "streaming" && !same, nil
	})
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fmt.Errorf("reinit %s: it goes on, last seen: %s", n.Name, why)
	}
	return err
}

func say(w io.Writer, name, text string) { fmt.Fprintf(w, "%s: %s\n", name, text) }
