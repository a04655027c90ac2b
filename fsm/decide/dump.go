package decide

import (
	"fmt"
	"strings"
)

// Dump renders the tables as markdown, in the order in which they are searched; docs/rules.md is its output.
func Dump() string {
	var b strings.Builder
	b.WriteString("# Rules\n\nGenerated from fsm/decide by `go test ./fsm/decide -update`. The first row that holds decides. `matriarch explain` prints which one that is.\n")
	b.WriteString("\n## A node about its PostgreSQL\n\n| id | rule | why |\n|---|---|---|\n")
	for _, r := range NodeRules {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.ID, r.Name, r.Why)
	}
	b.WriteString("\n## The conductor about a group\n\n| id | rule | why |\n|---|---|---|\n")
	for _, r := range ClusterRules {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.ID, r.Name, r.Why)
	}
	b.WriteString("\n## A primary without a majority, with failsafe\n\n| id | rule | why |\n|---|---|---|\n")
	for _, r := range HoldRules {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.ID, r.Name, r.Why)
	}
	b.WriteString("\n## A member that is asked for its word\n\n| id | rule | why |\n|---|---|---|\n")
	for _, r := range WordRules {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.ID, r.Name, r.Why)
	}
	return b.String()
}
