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
	Nodes           []string // addresses of the nodes that need the superuser, own included: IP, CIDR or host name
	Standbys        []string // addresses of the group's nodes, which replicate
	Security        Security
	Links           bool     // also members of LinkRole come from the nodes, with the nodes' certificates: Citus' links
	SlotDatabase    string   // where standbys ask for slots; empty: nowhere
	Lines           []string // the user's; empty admits every client with a password, the replication user excepted
}

// LinkRole is the role whose members Citus may log in between nodes by certificate alone. It has no login and no rights itself.
const LinkRole = "matriarch_links"

// defaultLines admit clients with a password from everywhere. The replication user is none: it could read every database by a logical
// slot, and the members' lines have let in whoever needs it.
func defaultLines(replication string) []string {
	return append([]string{"local all " + replication + " reject", "host all " + replication + " all reject"}, clients...)
}

var clients = []string{
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
	member := func(database, role, address string) {
		if h.Security.Certificates() {
			line("hostssl", database, role, address, "cert")
		}
		switch h.Security {
		case Required:
		case Both: // whoever shows no certificate comes without TLS, or would be refused above
			line("hostnossl", database, role, address, "scram-sha-256")
		default:
			line("host", database, role, address, "scram-sha-256")
		}
	}
	if h.Phase >= Members {
		for _, n := range h.Standbys {
			member("replication", QuoteIdent(h.ReplicationUser), hbaAddress(n))
			if h.SlotDatabase != "" {
				member(QuoteIdent(h.SlotDatabase), QuoteIdent(h.ReplicationUser), hbaAddress(n))
			}
		}
		for _, n := range h.Nodes {
			member("all", QuoteIdent(h.Superuser), hbaAddress(n))
		}
	}
	if h.Phase >= Open {
		if h.Links && h.Security.Certificates() {
			for _, n := range h.Nodes { // Citus logs in as the session's user, whatever name the node's certificate bears
				line("hostssl", "all", "+"+LinkRole, hbaAddress(n), "trust", "clientcert=verify-ca")
			}
		}
		lines := h.Lines
		if len(lines) == 0 {
			lines = defaultLines(QuoteIdent(h.ReplicationUser))
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
