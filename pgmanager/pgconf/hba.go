package pgconf

import (
	"fmt"
	"net/netip"
	"strings"
)

// Phase says who may connect.
type Phase int

// The phases in the order in which they open. In the first two an ordinary client is told "no pg_hba.conf entry" (28000).
const (
	Closed  Phase = iota // the manager alone, through the Unix socket
	Members              // also the formation's nodes: replication, and the superuser for Citus, rewind and metadata
	Open                 // also clients, by the user's lines
)

// String names the phase as logs do.
func (p Phase) String() string {
	switch p {
	case Closed:
		return "closed"
	case Members:
		return "members"
	case Open:
		return "open"
	}
	return fmt.Sprintf("phase(%d)", int(p))
}

// HBA is what the generated pg_hba file depends on.
type HBA struct {
	Phase           Phase
	Superuser       string
	ReplicationUser string
	Nodes           []string // addresses of the formation's nodes, own included: IP, CIDR or host name
	TLS             bool     // nodes have to come through TLS
	SlotDatabase    string   // where standbys ask for slots; empty: nowhere
	Lines           []string // the user's; empty admits every client with a password
}

// defaultLines admit clients with a password from everywhere.
var defaultLines = []string{
	"local all all scram-sha-256",
	"host all all 0.0.0.0/0 scram-sha-256",
	"host all all ::/0 scram-sha-256",
}

// RenderHBA renders the pg_hba file. The first matching line counts, hence the manager's come first and the user's
// cannot lock it out.
func RenderHBA(h HBA) []byte {
	var b strings.Builder
	line := func(f ...string) { b.WriteString(strings.Join(f, " ") + "\n") }
	b.WriteString("# Written by Matriarch; changes are overwritten. Phase: " + h.Phase.String() + ".\n")
	line("local", "all", QuoteIdent(h.Superuser), "scram-sha-256")
	if h.Phase >= Members {
		kind := "host"
		if h.TLS {
			kind = "hostssl"
		}
		for _, n := range h.Nodes {
			a := hbaAddress(n)
			line(kind, "replication", QuoteIdent(h.ReplicationUser), a, "scram-sha-256")
			line(kind, "all", QuoteIdent(h.Superuser), a, "scram-sha-256")
			if h.SlotDatabase != "" {
				line(kind, QuoteIdent(h.SlotDatabase), QuoteIdent(h.ReplicationUser), a, "scram-sha-256")
			}
		}
	}
	if h.Phase >= Open {
		lines := h.Lines
		if len(lines) == 0 {
			lines = defaultLines
		}
		for _, l := range lines {
			line(strings.NewReplacer("\n", " ", "\r", " ").Replace(l))
		}
	}
	return []byte(b.String())
}

func hbaAddress(s string) string {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.PrefixFrom(a.WithZone(""), a.BitLen()).String()
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.String()
	}
	return QuoteIdent(s)
}
