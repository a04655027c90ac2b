package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
)

func (p *program) transferVerb() *cli.Command {
	return &cli.Command{
		Name: "transfer-leader", Usage: "have another node lead Raft", ArgsUsage: "[NODE]", Category: "Change",
		Description: "No primary changes and no client notices. Without NODE a voter is chosen whose host holds no lease. With the setting leader_avoid on, leadership leaves\n" +
			"a host that holds a lease again while another voter is free.\n" +
			"Example:\n   matriarch transfer-leader\n   matriarch transfer-leader work1-2",
		Action: func(c *cli.Context) error {
			name := c.Args().First()
			if c.NArg() > 0 {
				if _, err := arguments(c, "NODE"); err != nil {
					return err
				}
			}
			cl, err := p.connect(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			return transferLeader(c, cl, name)
		},
	}
}

func transferLeader(c *cli.Context, cl cluster, name string) error {
	st, err := cl.Formation(c.Context)
	if err != nil {
		return err
	}
	leader, ok := st.State.Nodes[st.Raft.Leader]
	if !ok {
		return fmt.Errorf("%s: there is no Raft leader just now: see 'matriarch list'", c.Command.Name)
	}
	var to fsm.Node
	if name != "" {
		if to, err = nodeNamed(st.State, name); err != nil {
			return err
		}
		if to.ID == leader.ID {
			return done(c, "%s leads already", to.Name)
		}
	}
	now, err := cl.TransferLeader(c.Context, leader, to.ID)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Command.Name, err)
	}
	return done(c, "%s hands leadership to %s", leader.Name, st.State.Name(now))
}
