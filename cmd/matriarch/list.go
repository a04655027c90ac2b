package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

func groupFlag(usage string) *cli.IntFlag {
	return &cli.IntFlag{Name: "group", Aliases: []string{"g"}, Usage: usage + " `G`", Value: -1}
}

func (p *program) listVerb() *cli.Command {
	return &cli.Command{
		Name: "list", Usage: "show all members with role, state and lag", Category: "Look",
		Description: "Shows the whole formation as the Raft leader knows it, or as any node knows it when there is none.\nExample:\n   matriarch list --watch\n   matriarch list --group 1 --output json",
		Flags: []cli.Flag{
			groupFlag("only this group"),
			&cli.BoolFlag{Name: "watch", Aliases: []string{"W"}, Usage: "show it again and again until Ctrl-C"},
			&cli.Float64Flag{Name: "interval", Aliases: []string{"w"}, Usage: "watch, every so many `SECONDS`", Value: 2},
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			return p.list(c)
		},
	}
}

func (p *program) list(c *cli.Context) error {
	every := time.Duration(c.Float64("interval") * float64(time.Second))
	if every < 100*time.Millisecond || every > time.Hour {
		return usagef(c, "interval %v must be 0.1 to 3600 seconds", c.Float64("interval"))
	}
	cl, err := p.connect(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	show := func(ctx context.Context) error {
		st, err := cl.Formation(ctx)
		if err != nil {
			return err
		}
		f := admin.NewFormation(st)
		if err := onlyGroup(c, &f); err != nil {
			return err
		}
		return emit(c, f, func(w io.Writer) { renderList(w, f, p.now()) })
	}
	if !c.Bool("watch") && !c.IsSet("interval") {
		return show(c.Context)
	}
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	return repeat(ctx, every, func() {
		if c.String("output") == "table" {
			fmt.Fprint(p.out, "\x1b[2J\x1b[H")
		}
		if err := show(ctx); err != nil && ctx.Err() == nil {
			fmt.Fprintf(p.err, "matriarch: %v\n", err)
		}
	})
}

// repeat calls do now and every so often until ctx ends, which is no error.
func repeat(ctx context.Context, every time.Duration, do func()) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		do()
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// onlyGroup leaves in f what --group asks for.
func onlyGroup(c *cli.Context, f *admin.Formation) error {
	want := fsm.GroupID(c.Int("group"))
	if !c.IsSet("group") {
		return nil
	}
	if !slices.ContainsFunc(f.Groups, func(g admin.Group) bool { return g.ID == want }) {
		return fmt.Errorf("there is no group %d: %s", want, groupNames(*f))
	}
	f.Groups = slices.DeleteFunc(f.Groups, func(g admin.Group) bool { return g.ID != want })
	f.Members = slices.DeleteFunc(f.Members, func(m admin.Member) bool { return m.Group != want })
	return nil
}

func groupNames(f admin.Formation) string {
	ids := make([]string, 0, len(f.Groups))
	for _, g := range f.Groups {
		ids = append(ids, strconv.Itoa(int(g.ID)))
	}
	return "groups are " + strings.Join(ids, ", ")
}

var listHeader = []string{"Group", "Member", "Host", "Role", "State", "TL", "Receive LSN", "Lag", "Replay LSN", "Lag", "Tags"}

// renderList prints the table and, under it, everything that is not as it should be.
func renderList(w io.Writer, f admin.Formation, now time.Time) {
	rows := make([][]string, 0, len(f.Members))
	for _, m := range f.Members {
		rows = append(rows, []string{
			strconv.Itoa(int(m.Group)), m.Name, m.Host, m.Role, stateText(m), timelineText(m.Timeline), m.ReceiveLSN, lagText(m, m.ReceiveLag), m.ReplayLSN,
			lagText(m, m.ReplayLag), tagText(m.Tags),
		})
	}
	grid(w, "Cluster: "+f.ClusterID, listHeader, rows, 0, "Group", "TL", "Receive LSN", "Lag", "Replay LSN")
	for _, g := range f.Groups {
		for _, op := range []*admin.OperationView{g.Operation, g.Planned} {
			if op != nil {
				fmt.Fprintf(w, "Group %d: %s\n", g.ID, operationText(*op, now))
			}
		}
	}
	renderTroubles(w, f)
	fmt.Fprintln(w, raftText(f.Raft))
	if f.Metadata != nil && f.Metadata.Synced {
		fmt.Fprintf(w, "Citus metadata: in sync, looked at %s ago\n", ago(now, f.Metadata.At))
	}
}

func renderTroubles(w io.Writer, f admin.Formation) {
	for _, t := range f.Troubles {
		fmt.Fprintf(w, "! %s\n", t)
	}
	for _, n := range f.Notes {
		fmt.Fprintf(w, "- %s\n", n)
	}
}

func raftText(r admin.RaftView) string {
	leader := r.Leader
	if leader == "" {
		leader = "none"
	}
	out := fmt.Sprintf("Raft: leader %s, term %d, voters %s", leader, r.Term, strings.Join(r.Voters, " "))
	if r.SlowestTickMS > 0 {
		out += fmt.Sprintf(", slowest tick of the last minute %d ms", r.SlowestTickMS)
	}
	if r.LastContactMS > 2000 {
		out += fmt.Sprintf(", last heard %d ms ago", r.LastContactMS)
	}
	return out
}

func operationText(op admin.OperationView, now time.Time) string {
	to := "the best candidate"
	if op.To != "" {
		to = op.To
	}
	what := fmt.Sprintf("%s to %s", op.Kind, to)
	if op.Kind == fsm.Restart {
		what = "restart of the primary"
	}
	if op.Phase == "" && !op.Due.IsZero() {
		return fmt.Sprintf("%s planned for %s by %s", what, op.Due.Format(time.RFC3339), op.By)
	}
	out := fmt.Sprintf("%s asked for by %s %s ago", what, op.By, ago(now, op.At))
	if op.Phase != "" {
		out += ", phase " + op.Phase
	}
	if op.Trust {
		out += ", its data to be trusted"
	}
	if op.AcceptLoss {
		out += ", whatever is lost"
	}
	return out
}

func ago(now, then time.Time) string { return max(now.Sub(then), 0).Round(time.Second).String() }

func stateText(m admin.Member) string {
	if m.Pending {
		return m.State + ", restart pending"
	}
	return m.State
}

func timelineText(tl fsm.Timeline) string {
	if tl == 0 {
		return ""
	}
	return strconv.Itoa(int(tl))
}

// lagText is empty for a primary, which has none.
func lagText(m admin.Member, n *int64) string {
	switch {
	case m.Role == admin.RolePrimary:
		return ""
	case n == nil:
		return "unknown"
	}
	return size(*n)
}

// size rounds bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%d kB", n>>10)
	case n > 0:
		return fmt.Sprintf("%d B", n)
	}
	return "0"
}

func tagText(tags map[string]any) string {
	parts := make([]string, 0, len(tags))
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		if tags[k] == true {
			parts = append(parts, k)
			continue
		}
		parts = append(parts, fmt.Sprintf("%s: %v", k, tags[k]))
	}
	return strings.Join(parts, ", ")
}
