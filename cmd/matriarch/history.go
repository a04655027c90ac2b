package main

import (
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

func (p *program) historyVerb() *cli.Command {
	return &cli.Command{
		Name: "history", Usage: "show what happened to the groups", Category: "Look",
		Description: "Shows grants, promotions, failovers and changes of the synchronous set, oldest first; the last 100 of each group are kept.\nExample:\n   matriarch history --group 1",
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
			st, err := cl.Status(c.Context)
			if err != nil {
				return err
			}
			f := admin.NewFormation(st)
			if err := onlyGroup(c, &f); err != nil {
				return err
			}
			lines := historyOf(st.State, f.Groups)
			return emit(c, lines, func(w io.Writer) { renderHistory(w, lines) })
		},
	}
}

// historyLine is one event of a group.
type historyLine struct {
	Group    fsm.GroupID  `json:"group"`
	At       time.Time    `json:"at"`
	Kind     string       `json:"kind"`
	Node     string       `json:"node,omitempty"`
	Epoch    string       `json:"epoch,omitempty"`
	Timeline fsm.Timeline `json:"timeline,omitempty"`
	LSN      string       `json:"lsn,omitempty"`
	Text     string       `json:"text"`
	index    uint64
}

func historyOf(s *fsm.State, groups []admin.Group) []historyLine {
	out := []historyLine{}
	for _, g := range groups {
		for _, h := range s.History[g.ID] {
			l := historyLine{Group: g.ID, At: h.At, Kind: h.Kind, Timeline: h.Timeline, Text: h.Text, index: h.Index}
			if h.Node != "" {
				l.Node = s.Name(h.Node)
			}
			if !h.Epoch.IsZero() {
				l.Epoch = h.Epoch.String()
			}
			if h.LSN != 0 {
				l.LSN = h.LSN.String()
			}
			out = append(out, l)
		}
	}
	slices.SortStableFunc(out, func(a, b historyLine) int { return int(int64(a.index) - int64(b.index)) })
	return out
}

func renderHistory(w io.Writer, lines []historyLine) {
	rows := make([][]string, 0, len(lines))
	for _, l := range lines {
		rows = append(rows, []string{l.At.Format(stamp), strconv.Itoa(int(l.Group)), l.Kind, l.Node, l.Epoch, timelineText(l.Timeline), l.LSN, l.Text})
	}
	grid(w, "", []string{"Time", "Group", "Event", "Node", "Epoch", "TL", "LSN", "What"}, rows, -1, "Group", "TL", "LSN")
}
