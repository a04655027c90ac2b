package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"matriarch/consensus"
	"matriarch/fsm"
	"matriarch/internal/config"
	"matriarch/internal/identity"
)

func recoverVerb() *cli.Command {
	return &cli.Command{
		Name:  "recover",
		Usage: "rebuild the control plane from this node after the Raft majority is lost for good",
		Description: "Stop matriarch on this host first, and make sure that the lost nodes stay off. This node becomes the only voter of a new incarnation; every other node must\n" +
			"join again. What the synchronous sets were is unknown afterwards: a group gets a primary once all its members are back, or when an operator names\n" +
			"the data directory to trust (matriarch failover --group G --candidate N --trust).\n" +
			"Run it on the node with the highest term and index: `recover --dry-run` shows them.\n" +
			"Example: matriarch recover --config /etc/matriarch/matriarch.yml",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "show what this node knows and change nothing"},
			&cli.StringFlag{Name: "confirm", Usage: "`NAME` of this node, instead of typing it"},
		},
		Action: recoverNode,
	}
}

func recoverNode(c *cli.Context) error {
	cfg, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	dir := identity.Dir(cfg.StateDir)
	id, err := dir.Load()
	if err != nil {
		return err
	}
	s, index, term, err := consensus.Inspect(cfg.RaftDir)
	if err != nil {
		return err
	}
	showRecovery(c, id, s, index, term)
	if c.Bool("dry-run") {
		return nil
	}
	if err := confirmName(c, id.Name); err != nil {
		return err
	}
	// The handshake's incarnation goes up first: should this end half-way, nobody of the old one is let in.
	id.Incarnation++
	if err := dir.Save(id); err != nil {
		return err
	}
	if _, err := consensus.Recover(cfg.RaftDir, id.NodeID); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "control plane rebuilt: %s is the only voter, incarnation %d\n"+
		"1. start it: matriarch run --config %s\n2. make a token: matriarch token create\n"+
		"3. on every other host: stop matriarch, run the join line it prints with the host's own flags, start matriarch\n", id.Name, id.Incarnation, c.String("config"))
	return nil
}

func showRecovery(c *cli.Context, id identity.Identity, s *fsm.State, index, term uint64) {
	w := c.App.Writer
	fmt.Fprintf(w, "cluster %s as %s knows it: term %d, index %d, incarnation %d\n", s.Cluster.ID, id.Name, term, index, s.Cluster.Incarnation)
	for _, g := range s.GroupIDs() {
		gr := s.Groups[g]
		fmt.Fprintf(w, "  group %d: last primary %s, epoch %s, members", g, s.Name(gr.LastHolder), gr.Epoch)
		for _, n := range s.Members(g) {
			fmt.Fprintf(w, " %s", n.Name)
		}
		fmt.Fprintln(w)
	}
}

func confirmName(c *cli.Context, name string) error {
	got := c.String("confirm")
	if got == "" {
		fmt.Fprintf(c.App.Writer, "\nEntries that only lost nodes had are gone; entries that were never committed here become committed.\nType the name of this node (%s) to go on: ", name)
		line, err := bufio.NewReader(c.App.Reader).ReadString('\n')
		if err != nil && line == "" {
			return fmt.Errorf("recover: no confirmation: nothing was changed")
		}
		got = strings.TrimSpace(line)
	}
	if got != name {
		return fmt.Errorf("recover: %q is not the name of this node (%s): nothing was changed", got, name)
	}
	return nil
}
