package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"matriarch/citus"
	"matriarch/fsm"
	"matriarch/internal/admin"
)

func (p *program) citusStatus(c *cli.Context, cl cluster, _ fsm.GroupID) error {
	answers, err := cl.Citus(c.Context, fsm.Node{}, citusAsk(c, admin.CitusStatus, 0))
	if err != nil {
		return fmt.Errorf("citus status: %w", err)
	}
	right := true
	var all []citus.DatabaseStatus
	for _, a := range answers {
		all = append(all, *a.Status)
		right = right && a.Status.Right()
	}
	err = emit(c, all, func(w io.Writer) {
		for _, d := range all {
			renderDatabase(w, d)
		}
	})
	if err == nil && !right {
		err = errSaid
	}
	return err
}

var citusHeader = []string{"Group", "Role", "Wanted", "Node ID", "On the coordinator", "Other copies", "Synced", "Shards", "Pool"}

// renderDatabase has a line for every row that is wanted or there.
func renderDatabase(w io.Writer, d citus.DatabaseStatus) {
	verdict := "right on every node"
	if !d.Right() {
		verdict = "not right"
	}
	first := copyOf(d, 0)
	seen := map[int]bool{}
	var rows [][]string
	for _, want := range d.Wanted {
		have, ok := rowFor(first.Rows, want)
		seen[have.NodeID] = ok
		rows = append(rows, databaseRow(d, want, have, ok))
	}
	for _, have := range first.Rows {
		if !seen[have.NodeID] {
			rows = append(rows, databaseRow(d, citus.WantedRow{Group: have.Group, Role: have.Role, Addr: "none"}, have, true))
		}
	}
	slices.SortStableFunc(rows, func(a, b []string) int {
		x, _ := strconv.Atoi(a[0])
		y, _ := strconv.Atoi(b[0])
		return x - y
	})
	grid(w, fmt.Sprintf("Database %s: %s", d.Database, verdict), citusHeader, rows, 0, "Node ID")
	for _, n := range d.Nodes {
		if n.Error != "" {
			fmt.Fprintf(w, "! group %d at %s: %s\n", n.Group, n.Addr, n.Error)
		}
	}
	for _, x := range d.Problems {
		fmt.Fprintf(w, "! %s\n", x)
	}
	for _, x := range d.Differences {
		fmt.Fprintf(w, "- to be put right: %s\n", x)
	}
}

// copyOf is what the primary of a group shows.
func copyOf(d citus.DatabaseStatus, g fsm.GroupID) citus.NodeStatus {
	for _, n := range d.Nodes {
		if n.Group == g {
			return n
		}
	}
	return citus.NodeStatus{}
}

// rowFor finds the row that is meant: a primary's by its group, a standby's by its address.
func rowFor(rows []citus.NodeRow, want citus.WantedRow) (citus.NodeRow, bool) {
	i := slices.IndexFunc(rows, func(r citus.NodeRow) bool {
		return r.Group == want.Group && r.Role == want.Role && (want.Role == "primary" || r.Addr == want.Addr)
	})
	if i < 0 {
		return citus.NodeRow{}, false
	}
	return rows[i], true
}

func databaseRow(d citus.DatabaseStatus, want citus.WantedRow, have citus.NodeRow, ok bool) []string {
	role := want.Role
	if have.Cluster != "" && have.Cluster != "default" {
		role += " in " + have.Cluster
	}
	out := []string{strconv.Itoa(int(want.Group)), role, want.Addr, "", "no row", "", "", "", ""}
	if !ok {
		if want.Keep {
			out[2], out[4] = "none while it is away", ""
		}
		return out
	}
	at := have.Addr
	if !have.Active {
		at += ", inactive"
	}
	synced := ""
	if have.HasMetadata {
		synced = yesNo(have.Synced)
	}
	return append(out[:3], strconv.Itoa(have.NodeID), at, copiesText(d, have), synced, yesNo(have.TakesShards), have.Pool)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// copiesText compares a row of the coordinator with that of every other node that has a copy.
func copiesText(d citus.DatabaseStatus, row citus.NodeRow) string {
	same := 0
	var others []string
	for _, n := range d.Nodes {
		if n.Group == 0 || n.Error != "" || len(n.Rows) == 0 {
			continue
		}
		i := slices.IndexFunc(n.Rows, func(r citus.NodeRow) bool { return r.NodeID == row.NodeID })
		switch {
		case i < 0:
			others = append(others, fmt.Sprintf("group %d: no row", n.Group))
		case n.Rows[i].Addr != row.Addr:
			others = append(others, fmt.Sprintf("group %d: %s", n.Group, n.Rows[i].Addr))
		case n.Rows[i].Pool != row.Pool:
			others = append(others, fmt.Sprintf("group %d: pool %q", n.Group, n.Rows[i].Pool))
		default:
			same++
		}
	}
	switch {
	case len(others) == 0 && same == 0:
		return "none"
	case len(others) == 0:
		return fmt.Sprintf("same in %d", same)
	}
	return strings.Join(others, ", ")
}
