package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

func (p *program) topologyVerb() *cli.Command {
	return &cli.Command{
		Name: "topology", Usage: "show who follows whom, as a tree", Category: "Look",
		Description: "Shows groups, their primaries and who streams from them.\nExample:\n   matriarch topology --group 0",
		Flags:       []cli.Flag{groupFlag("only this group")},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
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
			f := admin.NewFormation(st)
			if err := onlyGroup(c, &f); err != nil {
				return err
			}
			return emit(c, f, func(w io.Writer) { renderTopology(w, f) })
		},
	}
}

func renderTopology(w io.Writer, f admin.Formation) {
	fmt.Fprintf(w, "cluster %s\n", f.ClusterID)
	for i, g := range f.Groups {
		branch, trunk := "+-- ", "|   "
		if i == len(f.Groups)-1 {
			branch, trunk = "`-- ", "    "
		}
		fmt.Fprintf(w, "%s%s\n", branch, groupText(g))
		var members []admin.Member
		for _, m := range f.Members {
			if m.Group == g.ID {
				members = append(members, m)
			}
		}
		indent := trunk
		if len(members) > 0 && members[0].Role == admin.RolePrimary {
			fmt.Fprintf(w, "%s`-- %s\n", indent, memberText(members[0]))
			members, indent = members[1:], indent+"    "
		}
		for j, m := range members {
			branch = "+-- "
			if j == len(members)-1 {
				branch = "`-- "
			}
			fmt.Fprintf(w, "%s%s%s\n", indent, branch, memberText(m))
		}
	}
}

func groupText(g admin.Group) string {
	kind := "worker"
	if g.ID == 0 {
		kind = "coordinator"
	}
	parts := []string{fmt.Sprintf("group %d (%s)", g.ID, kind), "epoch " + g.Epoch}
	if g.Mode == fsm.Off {
		parts = append(parts, "asynchronous")
	} else {
		parts = append(parts, "commits wait for "+g.Sync)
	}
	if g.Strict {
		parts = append(parts, "strict")
	}
	if g.Waiting {
		parts = append(parts, "waiting for a standby")
	}
	if g.Paused {
		parts = append(parts, "paused")
	}
	if g.Primary == "" {
		parts = append(parts, "no primary")
	}
	return strings.Join(parts, ", ")
}

func memberText(m admin.Member) string {
	out := fmt.Sprintf("%s  %s  %s, %s", m.Name, m.Host, strings.ToLower(m.Role), stateText(m))
	if m.Timeline != 0 {
		out += fmt.Sprintf(", timeline %d", m.Timeline)
	}
	if m.ReplayLag != nil {
		out += ", lag " + size(*m.ReplayLag)
	}
	return out
}
