package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

func yesFlag() cli.Flag {
	return &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}
}

// drainWait is how long a standby may take to get out of the synchronous set.
const drainWait = 30 * time.Second

func (p *program) leaveVerb() *cli.Command {
	return &cli.Command{
		Name: "leave", Usage: "take this node out of the cluster for good", Category: "Change",
		Description: "The node stops PostgreSQL and itself; its data directory stays as it is. A primary is refused: fail over first.\nExample:\n   matriarch leave",
		Flags:       []cli.Flag{yesFlag()},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			cl, err := p.connect(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			return p.takeOut(c, cl, string(cl.Self().NodeID))
		},
	}
}

func (p *program) removeVerb() *cli.Command {
	return &cli.Command{
		Name: "remove", Usage: "take a node out of the cluster for good", ArgsUsage: "NODE", Category: "Change",
		Description: "For a node that will not come back, or that should go. Its identity can never be used again; the host may join anew with an empty state\n" +
			"directory. A primary is refused: fail over first. The last node of a group goes only after 'matriarch citus remove-group'.\nExample:\n   matriarch remove work1-2",
		Flags: []cli.Flag{yesFlag()},
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
			return p.takeOut(c, cl, args[0])
		},
	}
}

// takeOut drains a node from its group's synchronous set, then removes it.
func (p *program) takeOut(c *cli.Context, cl cluster, name string) error {
	st, err := cl.Formation(c.Context)
	if err != nil {
		return err
	}
	n, err := nodeNamed(st.State, name)
	if err != nil {
		return err
	}
	g := st.State.Groups[n.Group]
	only := len(st.State.Members(n.Group)) == 1
	switch {
	case only && g.Retired:
	case only && g.SystemID != "":
		remedy := ""
		if n.Group != 0 && st.State.Cluster.Settings.Citus {
			remedy = fmt.Sprintf(": first 'matriarch citus drain %d' and 'matriarch citus remove-group %d'", n.Group, n.Group)
		}
		return fmt.Errorf("%s refused: %s is the only node of group %d, its data would go with it%s", c.Command.Name, n.Name, n.Group, remedy)
	case g.Lease.Holder == n.ID:
		return fmt.Errorf("%s refused: %s is the primary of group %d: first 'matriarch failover --group %d'", c.Command.Name, n.Name, n.Group, n.Group)
	}
	question := fmt.Sprintf("%s (group %d, %s) leaves cluster %s for good.", n.Name, n.Group, n.Peer, st.State.Cluster.ID)
	if left := confirmersWithout(st.State, g, n.ID); g.Holds() && left < g.Confirmers() && left < confirmersWithout(st.State, g, "") {
		return fmt.Errorf("%s refused: group %d is strict and its commits need %d standbys: %s would leave %d, and they would wait for ever; first add a standby, or 'matriarch config set --group %d strict=false', or a lower synchronous_node_count",
			c.Command.Name, n.Group, g.Confirmers(), n.Name, left, n.Group)
	}
	if only && g.Retired {
		question += fmt.Sprintf(" It is the last node of group %d.", n.Group)
	}
	if err := p.confirm(c, n.Name, question); err != nil {
		return err
	}
	undrain, err := p.drain(c, cl, n)
	if err == nil {
		err = submit(c, cl, admin.Request{NodeRemove: &fsm.NodeRemove{Node: n.ID}})
	}
	if err != nil {
		return errors.Join(err, undrain())
	}
	return done(c, "%s is removed; its data directory is untouched", n.Name)
}

// confirmersWithout counts the standbys that may confirm commits once a node has left.
func confirmersWithout(s *fsm.State, g fsm.Group, leaver fsm.NodeID) (n int) {
	for _, m := range s.Members(g.ID) {
		if m.ID != g.Lease.Holder && m.ID != leaver && !m.Tags.NoSync && m.Postgres != "" {
			n++
		}
	}
	return n
}

// drain has the primary let go of a standby, by the tag nosync. undrain puts the tag back as it was.
func (p *program) drain(c *cli.Context, cl cluster, n fsm.Node) (undrain func() error, err error) {
	undrain = func() error { return nil }
	inSet := func(s *fsm.State) bool {
		for _, pair := range s.Groups[n.Group].Sync.Pairs {
			if pair.Has(n.ID) {
				return true
			}
		}
		return false
	}
	st, err := cl.Formation(c.Context)
	if err != nil || !inSet(st.State) || !st.State.Groups[n.Group].Held() {
		return undrain, err // without a primary nobody can let go: the removal will be refused with the reason
	}
	if !n.Tags.NoSync {
		tagged := n
		tagged.Tags.NoSync = true
		if err := submit(c, cl, admin.Request{NodePut: &fsm.NodePut{Node: tagged}}); err != nil {
			return undrain, err
		}
		undrain = func() error { return submit(c, cl, admin.Request{NodePut: &fsm.NodePut{Node: n}}) }
	}
	ctx, cancel := context.WithTimeout(c.Context, drainWait)
	defer cancel()
	err = poll(ctx, func() (bool, error) {
		st, err := cl.Formation(ctx)
		return err == nil && !inSet(st.State), nil
	})
	if err != nil {
		return undrain, fmt.Errorf("%s: %s is still in the synchronous set of group %d after %s: see 'matriarch explain --group %d'", c.Command.Name, n.Name, n.Group, drainWait, n.Group)
	}
	return undrain, nil
}

// poll asks again and again until the answer is yes, an error, or ctx ends.
func poll(ctx context.Context, yes func() (bool, error)) error {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		if ok, err := yes(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}
