package citus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"matriarch/fsm"
)

// RefusalKind says what speaks against a pause.
type RefusalKind string

const (
	// RefusalUnreachable is a primary that does not answer, so that nothing can be held there.
	RefusalUnreachable RefusalKind = "unreachable"
	// RefusalUnsynced is a metadata node that Citus' daemon has yet to bring up to date.
	RefusalUnsynced RefusalKind = "unsynced"
	// RefusalRows is a row that leads elsewhere than wanted, or a server that is not the wanted primary.
	RefusalRows RefusalKind = "rows"
	// RefusalMove is a shard on the move: it holds what the pause needs until it has arrived.
	RefusalMove RefusalKind = "move"
)

// Refusal is one reason not to begin a switchover now.
type Refusal struct {
	Kind     RefusalKind `json:"kind"`
	Database string      `json:"database"`
	Group    fsm.GroupID `json:"group"` // whose primary, or copy, shows it
	Text     string      `json:"text"`
}

func (r Refusal) String() string { return fmt.Sprintf("database %s: %s", r.Database, r.Text) }

// Check looks, without locks, whether the metadata permits a pause for a group. It changes nothing and takes no time from
// clients. Transactions in the way now are Hold's to wait for. The error is that of a context, or ErrPaused.
func (p *Pool) Check(ctx context.Context, term uint64, wants []Wanted, group fsm.GroupID) ([]Refusal, error) {
	if p.pausing.Load() > 0 {
		return nil, ErrPaused
	}
	var out []Refusal
	for _, w := range wants {
		c := checker{want: w, group: group}
		var failed map[fsm.GroupID]error
		c.seen, failed = p.look(ctx, w, func(ctx context.Context, _ fsm.GroupID, at place) (Actual, error) {
			return p.glimpse(ctx, term, at)
		})
		if ctx.Err() != nil {
			return nil, fmt.Errorf("check metadata of database %s: %w", w.Database, ctx.Err())
		}
		for _, g := range slices.Sorted(maps.Keys(failed)) {
			if g != group || g == 0 { // a worker's own copy is not locked, and not asked for anything
				c.refuse(RefusalUnreachable, g, "%v", failed[g])
			}
		}
		c.servers()
		c.rows()
		if failed[0] == nil && c.seen[0].Extension != "" {
			c.moves(p.MovesRunning(ctx, w))
		}
		out = append(out, c.out...)
	}
	return out, nil
}

// glimpse observes a server over a session of its own: the pool's may be in use.
func (p *Pool) glimpse(ctx context.Context, term uint64, at place) (Actual, error) {
	ctx, cancel := context.WithTimeout(ctx, p.times(observeTimeout))
	defer cancel()
	c, err := p.dialFor(ctx, term, at.addr, at.database, pauseGrace)
	if err != nil {
		return Actual{}, err
	}
	defer closeConn(c)
	return Observe(ctx, c)
}

type checker struct {
	want  Wanted
	group fsm.GroupID
	seen  map[fsm.GroupID]Actual
	out   []Refusal
}

func (c *checker) refuse(kind RefusalKind, g fsm.GroupID, format string, args ...any) {
	c.out = append(c.out, Refusal{Kind: kind, Database: c.want.Database, Group: g, Text: fmt.Sprintf(format, args...)})
}

func (c *checker) servers() {
	for _, g := range c.want.groups() {
		if a, ok := c.seen[g]; ok && stray(c.want.Primaries[g], a) {
			c.refuse(RefusalRows, g, "the server of group %d at %s is not the primary that was meant", g, c.want.Primaries[g].Addr)
		}
	}
}

// rows compares every copy with the wanted addresses, and reads on the coordinator who has yet to hear of a change.
func (c *checker) rows() {
	for _, on := range c.want.groups() {
		a := c.seen[on]
		if a.LocalGroup != on {
			continue
		}
		for _, g := range c.want.groups() {
			row, ok := a.rowOf(g)
			if want := c.want.Primaries[g].Addr; ok && !want.IsZero() && row.Addr != want {
				c.refuse(RefusalRows, on, "row %d of group %d leads to %s in the copy of group %d, wanted %s", row.NodeID, g, row.Addr, on, want)
			}
			if ok && on == 0 && g != 0 && row.HasMetadata && !row.Synced {
				c.refuse(RefusalUnsynced, g, "metadata of group %d is not in sync", g)
			}
		}
	}
}

func (c *checker) moves(running []string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		c.refuse(RefusalMove, 0, "cannot tell whether shards move: %v", err)
	}
	for _, m := range running {
		c.refuse(RefusalMove, 0, "%s", m)
	}
}
