package citus

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"

	"matriarch/fsm"
)

// Addr is where one PostgreSQL is reached, as the rows of pg_dist_node name it.
type Addr struct {
	Host string `json:"host"`
	Port int    `json:"port"`
}

// IsZero reports whether there is no address.
func (a Addr) IsZero() bool { return a == Addr{} }

func (a Addr) String() string {
	if a.IsZero() {
		return "none"
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(a.Port))
}

// ParseAddr reads host:port.
func ParseAddr(s string) (Addr, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Addr{}, fmt.Errorf("parse address %q: want host:port: %w", s, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" {
		return Addr{}, fmt.Errorf("parse address %q: want host:port with a port from 1 to 65535", s)
	}
	return Addr{Host: host, Port: int(n)}, nil
}

// Primary is the primary of one group.
type Primary struct {
	Addr     Addr         // zero: the group has none now, its row stays as it is
	Timeline fsm.Timeline // made by its promotion; 0: not known yet
}

// Wanted is what one database's metadata should say.
type Wanted struct {
	Database  string
	Primaries map[fsm.GroupID]Primary // every group of the formation; 0 is the coordinator
	Gone      []fsm.GroupID           // groups whose rows have to go
	Recover   bool                    // prepared transactions are due for recovery; Reconcile sets it from time to time
}

// Want reads from the replicated state what a database's metadata should say.
func Want(s *fsm.State, database string) (Wanted, error) {
	w := Wanted{Database: database, Primaries: map[fsm.GroupID]Primary{}}
	for _, id := range s.GroupIDs() {
		g := s.Groups[id]
		n, ok := s.Primary(id)
		if id == 0 && !ok { // its own copy of the rows must be right before clients, or its maintenance daemon, can use it
			n, ok = s.Promoted(id)
		}
		if !ok {
			if g.SystemID != "" {
				w.Primaries[id] = Primary{}
			}
			continue
		}
		addr, err := ParseAddr(n.Postgres)
		if err != nil {
			return Wanted{}, fmt.Errorf("address of node %s: %w", n.Name, err)
		}
		p := Primary{Addr: addr}
		if last, ok := g.LastGrant(); ok && last.Epoch == g.Epoch {
			p.Timeline = last.Timeline
		}
		w.Primaries[id] = p
	}
	return w, nil
}

// groups lists the wanted groups in order.
func (w Wanted) groups() []fsm.GroupID { return slices.Sorted(maps.Keys(w.Primaries)) }

// Row is one row of pg_dist_node.
type Row struct {
	NodeID      int
	Group       fsm.GroupID
	Addr        Addr
	Rack        string
	Role        string // primary, secondary, unavailable
	Cluster     string
	Active      bool
	HasMetadata bool
	Synced      bool // as the coordinator sees it; meaningless in a worker's copy
	TakesShards bool
}

func (r Row) primary() bool { return r.Role == "primary" }

// Actual is what one primary shows of itself and of its copy of the metadata.
type Actual struct {
	Missing    bool   // the database does not exist
	Extension  string // version; empty: not created
	Ready      bool   // the table of the conductor's term and the password for the other nodes are there
	InRecovery bool
	Timeline   fsm.Timeline // 0 in recovery
	LocalGroup fsm.GroupID
	Rows       []Row // by nodeid
}

// rowOf finds the row of a group's primary.
func (a Actual) rowOf(g fsm.GroupID) (Row, bool) {
	for _, r := range a.Rows {
		if r.Group == g && r.primary() {
			return r, true
		}
	}
	return Row{}, false
}
