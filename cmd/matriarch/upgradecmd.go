package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

func (p *program) upgradeVerb() *cli.Command {
	return &cli.Command{
		Name: "upgrade", Usage: "see and finish the upgrade of matriarch itself", Category: "Change",
		Description: "Nodes may run two versions side by side, and go back, until the upgrade is finished.\nExample:\n   matriarch upgrade status",
		Subcommands: []*cli.Command{
			{
				Name: "status", Usage: "show each node's version",
				Description: "Shows each node's binary, the command version that it knows, and the one the formation works with.\nExample:\n   matriarch upgrade status --output json",
				Action:      p.upgradeStatus,
			},
			{
				Name: "finish", Usage: "let the formation use what every node's binary knows",
				Description: "From then on older binaries cannot take part any more: they stop and say so. Refused while a node's binary is older.\nExample:\n   matriarch upgrade finish",
				Action:      p.upgradeFinish,
			},
		},
	}
}

func (p *program) upgradeStatus(c *cli.Context) error {
	u, cl, err := p.upgrade(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	return emit(c, u, func(w io.Writer) {
		rows := make([][]string, 0, len(u.Nodes))
		for _, n := range u.Nodes {
			rows = append(rows, []string{n.Name, n.Version, strconv.Itoa(n.Protocol)})
		}
		slices.SortFunc(rows, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
		grid(w, "", []string{"Member", "Version", "Knows commands"}, rows, -1, "Knows commands")
		switch {
		case u.Open():
			fmt.Fprintf(w, "The formation works with command version %d; every node knows %d.\nEach node may still go back to its older binary. To end that: matriarch upgrade finish\n", u.Gate, u.Known)
		default:
			fmt.Fprintf(w, "The formation works with command version %d: nothing to finish.\n", u.Gate)
		}
	})
}

func (p *program) upgradeFinish(c *cli.Context) error {
	u, cl, err := p.upgrade(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	if !u.Open() {
		return done(c, "nothing to finish: the formation works with command version %d, and so much do all nodes know", u.Gate)
	}
	if err := submit(c, cl, admin.Request{GateSet: &fsm.GateSet{Gate: u.Known}}); err != nil {
		return err
	}
	return done(c, "the formation works with command version %d from now on; binaries that do not know it cannot take part", u.Known)
}

func (p *program) upgrade(c *cli.Context) (admin.Upgrade, cluster, error) {
	if _, err := arguments(c); err != nil {
		return admin.Upgrade{}, nil, err
	}
	cl, err := p.connect(c)
	if err != nil {
		return admin.Upgrade{}, nil, err
	}
	st, err := cl.Formation(c.Context)
	if err != nil {
		cl.Close()
		return admin.Upgrade{}, nil, err
	}
	return admin.NewUpgrade(st.State), cl, nil
}
