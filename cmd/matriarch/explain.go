package main

import (
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/agent"
	"matriarch/internal/conductor"
)

func (p *program) explainVerb() *cli.Command {
	return &cli.Command{
		Name: "explain", Usage: "say which rule holds for a node or group, with its numbers", ArgsUsage: "[NODE]", Category: "Look",
		Description: "Every decision is the first matching rule of a table. This shows the one that holds now, why, and the last ones before it.\n" +
			"Without a node: this one.\nExample:\n   matriarch explain work1-2\n   matriarch explain --group 1",
		Flags: []cli.Flag{groupFlag("explain what the conductor does about group")},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "[NODE]")
			if err != nil {
				return err
			}
			if len(args) > 0 && c.IsSet("group") {
				return usagef(c, "give a node or --group, not both")
			}
			cl, err := p.connect(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			st, err := cl.Formation(c.Context)
			if err != nil {
				return err
			}
			if c.IsSet("group") {
				return explainGroup(c, st)
			}
			name := string(cl.Self().NodeID)
			if len(args) > 0 {
				name = args[0]
			}
			return explainNode(c, cl, st, name)
		},
	}
}

// explanation is why something is as it is.
type explanation struct {
	Subject   string           `json:"subject"`
	Rule      string           `json:"rule"`
	Name      string           `json:"name"`
	Reason    string           `json:"reason"`
	Since     time.Time        `json:"since,omitzero"`
	Decisions []agent.Decision `json:"decisions,omitempty"` // oldest first
	History   []fsm.History    `json:"history,omitempty"`   // of a group, oldest first
	Lease     *fsm.Lease       `json:"lease,omitempty"`
	Sync      *fsm.Sync        `json:"sync,omitempty"`
}

func explainNode(c *cli.Context, cl cluster, st admin.Status, name string) error {
	n, err := nodeNamed(st.State, name)
	if err != nil {
		return err
	}
	own, err := cl.StatusOf(c.Context, n)
	if err != nil {
		return fmt.Errorf("explain %s: %w", n.Name, err)
	}
	e, err := nodeExplanation(n, own)
	if err != nil {
		return err
	}
	return emit(c, e, func(w io.Writer) { renderExplanation(w, e) })
}

// nodeExplanation is what a node says of its own rule.
func nodeExplanation(n fsm.Node, own admin.Status) (explanation, error) {
	self := own.Self
	if self == nil {
		return explanation{}, fmt.Errorf("explain %s: it has decided nothing yet", n.Name)
	}
	return explanation{Subject: n.Name, Rule: self.Rule, Name: self.Name, Reason: self.Reason, Since: self.Since, Decisions: self.Past}, nil
}

const shownHistory = 15

func explainGroup(c *cli.Context, st admin.Status) error {
	e, err := groupExplanation(st, fsm.GroupID(c.Int("group")))
	if err != nil {
		return err
	}
	return emit(c, e, func(w io.Writer) { renderGroup(w, e) })
}

// groupExplanation is what the conductor does about a group.
func groupExplanation(st admin.Status, id fsm.GroupID) (explanation, error) {
	g, ok := st.State.Groups[id]
	if !ok {
		return explanation{}, fmt.Errorf("there is no group %d: %s", id, groupNames(admin.NewFormation(st)))
	}
	plan, ok := st.Plans[id]
	if !ok {
		plan = conductor.Decision{Rule: "-", Name: "unknown", Reason: "no Raft leader answered, and only the leader decides about groups"}
	}
	past := st.State.History[id]
	return explanation{
		Subject: fmt.Sprintf("group %d", id), Rule: plan.Rule, Name: plan.Name, Reason: plan.Reason, History: past[max(0, len(past)-shownHistory):], Lease: &g.Lease, Sync: &g.Sync,
	}, nil
}

func renderGroup(w io.Writer, e explanation) {
	renderExplanation(w, e)
	for _, h := range e.History {
		fmt.Fprintf(w, "  %s  %-11s %s\n", h.At.Format(stamp), h.Kind, h.Text)
	}
}

const stamp = "2006-01-02 15:04:05.000"

func renderExplanation(w io.Writer, e explanation) {
	fmt.Fprintf(w, "%s: %s %s\n  %s\n", e.Subject, e.Rule, e.Name, e.Reason)
	if !e.Since.IsZero() {
		fmt.Fprintf(w, "  since %s\n", e.Since.Format(stamp))
	}
	if len(e.Decisions) > 0 || len(e.History) > 0 {
		fmt.Fprintln(w, "before, oldest first:")
	}
	for _, d := range e.Decisions {
		fmt.Fprintf(w, "  %s  %s %s: %s\n", d.At.Format(stamp), d.Rule, d.Name, d.Reason)
	}
}
