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
	Database    string
	Primaries   map[fsm.GroupID]Primary     // every group of the formation; 0 is the coordinator
	Secondaries map[fsm.GroupID][]Secondary // nil: no standby is registered
	PoolPort    int                         // of the connection pool beside every PostgreSQL; 0: pg_dist_poolinfo has no row of ours
	Gone        []fsm.GroupID               // groups whose rows have to go, members of Primaries or not
	Recover     bool                        // prepared transactions are due for recovery; Reconcile sets it from time to time
}

// Want reads from the replicated state what a database's metadata should say.
func Want(s *fsm.State, database string) (Wanted, error) {
	set := s.Cluster.Settings
	w := Wanted{Database: database, Primaries: map[fsm.GroupID]Primary{}, PoolPort: set.CitusPoolPort}
	if set.CitusSecondaries {
		w.Secondaries = map[fsm.GroupID][]Secondary{}
	}
	for _, id := range s.GroupIDs() {
		g := s.Groups[id]
		if g.Retired {
			w.Gone = append(w.Gone, id)
			continue
		}
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
		if w.Secondaries == nil {
			continue
		}
		if w.Secondaries[id], err = standbys(s, g, n); err != nil {
			return Wanted{}, err
		}
	}
	return w, nil
}

// groups lists the wanted groups in order.
func (w Wanted) groups() []fsm.GroupID { return slices.Sorted(maps.Keys(w.Primaries)) }

func (w Wanted) gone(g fsm.GroupID) bool { return slices.Contains(w.Gone, g) }
