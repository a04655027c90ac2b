package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/agent"
)

func (p *program) slotsVerb() *cli.Command {
	group := &cli.IntFlag{Name: "group", Aliases: []string{"g"}, Usage: "of this `GROUP`; without it: 0, the coordinator"}
	return &cli.Command{
		Name: "slots", Usage: "show and change replication slots that survive a failover", Category: "Change",
		Description: "A permanent slot is made on the primary of its group, whoever that is, and kept on the standbys. Slots of the members and of Citus are none of these; any other\n" +
			"slot is left alone.\nExample:\n   matriarch slots add cdc --type logical --database app --plugin pgoutput\n   matriarch slots list",
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "show all slots of every primary and standby that answers",
				Description: "Example:\n   matriarch slots list --output json",
				Action:      p.slotsList,
			},
			{
				Name: "add", Usage: "make a slot permanent", ArgsUsage: "NAME",
				Description: "Example:\n   matriarch slots add archive --type physical --group 1",
				Flags: []cli.Flag{
					group,
					&cli.StringFlag{Name: "type", Usage: "physical or logical", Value: string(fsm.Physical)},
					&cli.StringFlag{Name: "database", Usage: "`DATABASE` of a logical slot"},
					&cli.StringFlag{Name: "plugin", Usage: "output `PLUGIN` of a logical slot, for instance pgoutput"},
				},
				Action: p.slotAdd,
			},
			{
				Name: "drop", Usage: "drop a permanent slot everywhere, once nobody uses it", ArgsUsage: "NAME",
				Description: "Example:\n   matriarch slots drop archive --group 1",
				Flags:       []cli.Flag{group},
				Action:      p.slotDrop,
			},
			{
				Name: "reset", Usage: "make a logical slot again that was lost; its consumer has to begin anew", ArgsUsage: "NAME",
				Description: "A logical slot that did not survive is not made again by itself: its consumer would lack changes and not notice.\nExample:\n   matriarch slots reset cdc",
				Flags:       []cli.Flag{group},
				Action:      p.slotReset,
			},
		},
	}
}

func (p *program) slotAdd(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	s := fsm.Slot{Name: args[0], Type: fsm.SlotType(c.String("type")), Database: c.String("database"), Plugin: c.String("plugin")}
	if err := s.Check(); err != nil {
		return usagef(c, "%v", err)
	}
	return p.slotChange(c, admin.Request{SlotPut: &fsm.SlotPut{Group: fsm.GroupID(c.Int("group")), Slot: s}}, "slot %s is permanent in group %d", s)
}

func (p *program) slotDrop(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	return p.slotChange(c, admin.Request{SlotDrop: &fsm.SlotDrop{Group: fsm.GroupID(c.Int("group")), Name: args[0]}}, "slot %s of group %d is dropped once nobody uses it", args[0])
}

func (p *program) slotChange(c *cli.Context, r admin.Request, said string, what any) error {
	cl, err := p.connect(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := submit(c, cl, r); err != nil {
		return err
	}
	return done(c, said, what, c.Int("group"))
}

func (p *program) slotReset(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
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
	id := fsm.GroupID(c.Int("group"))
	for _, s := range st.State.Groups[id].Slots {
		if s.Name != args[0] || s.Dropped {
			continue
		}
		if err := submit(c, cl, admin.Request{SlotPut: &fsm.SlotPut{Group: id, Slot: s, Anew: true}}); err != nil {
			return err
		}
		return done(c, "slot %s of group %d is made anew where it is lost", s.Name, id)
	}
	return fmt.Errorf("slots reset: %s is not a permanent slot of group %d: 'matriarch slots list' shows which there are", args[0], id)
}

// slotRow is one slot of one server.
type slotRow struct {
	Group fsm.GroupID `json:"group"`
	Node  string      `json:"node"`
	Role  string      `json:"role"`
	Kind  string      `json:"kind"` // member, permanent, citus or other; missing: permanent and not there
	agent.SlotSeen
}

type slotView struct {
	Slots []slotRow `json:"slots"`
	Notes []string  `json:"notes,omitempty"`
}

func (p *program) slotsList(c *cli.Context) error {
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
	v := slotsOf(c.Context, cl, st)
	return emit(c, v, func(w io.Writer) { renderSlots(w, v) })
}

func slotsOf(ctx context.Context, cl cluster, st admin.Status) slotView {
	v := slotView{Slots: []slotRow{}}
	for _, m := range admin.Members(st) {
		g := st.State.Groups[m.Group]
		own, err := cl.StatusOf(ctx, st.State.Nodes[m.ID])
		if err == nil && own.Self == nil {
			err = errors.New("it has decided nothing yet")
		}
		if err != nil {
			v.Notes = append(v.Notes, fmt.Sprintf("%s: %v", m.Name, err))
			continue
		}
		here := map[string]bool{}
		for _, s := range own.Self.Slots {
			here[s.Name] = true
			v.Slots = append(v.Slots, slotRow{m.Group, m.Name, m.Role, admin.SlotKind(g, s.Name), s})
		}
		for _, s := range g.Slots {
			if m.Role == admin.RolePrimary && !here[s.Name] && !s.Dropped {
				v.Slots = append(v.Slots, slotRow{m.Group, m.Name, m.Role, "missing", agent.SlotSeen{Name: s.Name, Type: s.Type, Database: s.Database, Plugin: s.Plugin}})
			}
		}
		if m.Slots != "" {
			v.Notes = append(v.Notes, m.Name+": "+m.Slots)
		}
	}
	return v
}

func renderSlots(w io.Writer, v slotView) {
	rows := make([][]string, 0, len(v.Slots))
	for _, s := range v.Slots {
		use := "no"
		if s.Active {
			use = "yes"
		}
		rows = append(rows, []string{strconv.Itoa(int(s.Group)), s.Node, s.Name, s.Kind, string(s.Type), s.Database, s.Plugin, use, s.WALStatus, size(s.Retained)})
	}
	grid(w, "", []string{"Group", "Member", "Slot", "Kind", "Type", "Database", "Plugin", "In use", "WAL", "Kept"}, rows, 0, "Group", "Kept")
	for _, n := range v.Notes {
		fmt.Fprintf(w, "- %s\n", n)
	}
}
