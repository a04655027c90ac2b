package sim

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/transport"
)

// World is one cluster with its clients. Its mutex guards every model in it; nothing blocks while holding it except by conditions.
type World struct {
	seed  uint64
	dir   string
	net   *transport.FakeNet
	ca    *transport.CA
	began time.Time
	ctx   context.Context // of everything in the bubble

	mu         sync.Mutex
	early      bool // groups fail over before the end of a lease: a primary cut off may write what nobody acknowledges, and show the past
	without    rule // the one that does not hold here
	sickly     bool // PostgreSQL's disks hang often, and a group may be taken from a sick primary again soon
	plain      bool // nodes without tags, groups as a cluster makes them
	confirm    int  // of plain groups: synchronous_node_count
	liars      bool // clocks may stand still: then nothing keeps two servers from writing, but nothing acknowledged may be lost
	rng        *rand.Rand
	refork     float64                      // how often a walreceiver is forked by a request made with old settings
	brisk      bool                         // promotions take no time
	quickest   time.Duration                // from the end of a lease to the end of the last process, at least
	hangs      float64                      // how often PostgreSQL does not end on SIGQUIT
	unfit      float64                      // how often a sentinel will not promote
	overshoot  time.Duration                // at most, from the end of a lease to the end of the last process
	refusals   float64                      // how often planned work is refused
	watching   []func(next *fsm.State) bool // called for every new state of any node, until they answer true
	machines   []*machine
	groups     map[fsm.GroupID]*groupTruth
	lines      []string
	broken     string // the first violation
	frames     map[uint64]any
	lastID     uint64
	states     map[uint64]string // by index, of whichever node applied it first
	background sync.WaitGroup
}

// place is a server, as what a client got from it was.
type place struct {
	node  string
	epoch fsm.Epoch
}

// groupTruth is what the checker knows of a group.
type groupTruth struct {
	id      fsm.GroupID
	writers map[*proc]bool   // servers that accept writes
	acked   map[uint64]place // values whose commit was acknowledged, and where
	seen    map[uint64]place // values that a reader saw, and where first
	opened  int              // how often a server opened for clients
	lossy   bool             // it has been asynchronous: then acknowledged and seen prove nothing

	held   *held    // clients wait
	asking int      // statements under way
	row    *machine // where the rows point since the newest pause ended, and how often they were written
	rows   int
}

func newWorld(ctx context.Context, seed uint64, dir string) (*World, error) {
	w := &World{
		seed: seed, dir: dir, ctx: ctx, net: transport.NewFakeNet(), began: time.Now(), rng: rand.New(rand.NewPCG(seed, 2)),
		groups: map[fsm.GroupID]*groupTruth{}, frames: map[uint64]any{}, states: map[uint64]string{},
	}
	w.overshoot, w.refork = lease.Margin*8/10, 0.25
	w.net.Seed(seed)
	w.net.SetDefaultDelay(500*time.Microsecond, time.Millisecond)
	ca, err := transport.NewCA(clusterID, time.Now())
	w.ca = ca
	return w, err
}

const clusterID = "0c0c0c0c-0000-4000-8000-000000000002"

// note writes one line of the trace.
func (w *World) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteLocked(format, args...)
}

func (w *World) noteLocked(format string, args ...any) {
	w.lines = append(w.lines, fmt.Sprintf("%9.3f ", time.Since(w.began).Seconds())+fmt.Sprintf(format, args...))
}

// violate records the first violation. The mutex is held.
func (w *World) violate(format string, args ...any) {
	w.noteLocked("VIOLATION "+format, args...)
	if w.broken == "" {
		w.broken = fmt.Sprintf(format, args...)
	}
}

func (w *World) violated() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken
}

// between draws a duration; the mutex is held.
func (w *World) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)+1))
}

// draw is between without the mutex.
func (w *World) draw(lo, hi time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.between(lo, hi)
}

func (w *World) chance(p float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.Float64() < p
}

// pause sleeps unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send and receive carry Go values over connections of the fake network: what travels is a handle.
func (w *World) send(c net.Conn, v any) error {
	w.mu.Lock()
	w.lastID++
	id := w.lastID
	w.frames[id] = v
	w.mu.Unlock()
	_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, err := c.Write(binary.BigEndian.AppendUint64(nil, id))
	return err
}

func (w *World) receive(c net.Conn, within time.Duration) (any, error) {
	_ = c.SetReadDeadline(time.Now().Add(within))
	var b [8]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return nil, err
	}
	id := binary.BigEndian.Uint64(b[:])
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.frames[id]
	delete(w.frames, id)
	return v, nil
}

func (w *World) group(id fsm.GroupID) *groupTruth {
	g := w.groups[id]
	if g == nil {
		g = &groupTruth{id: id, writers: map[*proc]bool{}, acked: map[uint64]place{}, seen: map[uint64]place{}}
		w.groups[id] = g
	}
	return g
}

// judgeWriters is called after every change of who accepts writes. The mutex is held.
func (w *World) judgeWriters(m *machine) {
	g := w.group(m.group)
	for _, o := range w.machines {
		if o.group == m.group && o.server.proc != nil {
			p := o.server.proc
			g.writers[p] = p.primary && !p.stopping && !p.dead && !o.frozen
		}
	}
	var names []string
	for p, yes := range g.writers {
		if p.dead || p.m.server.proc != p {
			delete(g.writers, p)
			continue
		}
		if yes {
			names = append(names, fmt.Sprintf("%s (epoch %s, timeline %d)", p.m.name, p.epoch, p.s.dir.tl))
		}
	}
	if len(names) > 1 && !w.liars && !w.early {
		w.violate("group %d has %d servers that accept writes: %v", m.group, len(names), names)
	}
}

// judgeHistory checks that a server has everything that was acknowledged or seen, in the epochs that are asked for. The mutex is
// held.
func (w *World) judgeHistory(p *proc, when string, asked func(fsm.Epoch) bool) {
	g := w.group(p.m.group)
	if g.lossy {
		return
	}
	have := make(map[uint64]bool, len(p.s.dir.wal))
	for _, r := range p.s.dir.wal {
		have[r.value] = true
	}
	for v, at := range g.acked {
		if !have[v] && asked(at.epoch) {
			w.violate("group %d, %s: %s, epoch %s, does not have %d, which was acknowledged by %s in epoch %s", m0(g), when, p.m.name, p.epoch, v, at.node, at.epoch)
			return
		}
	}
	for v, at := range g.seen {
		if !have[v] && asked(at.epoch) {
			w.violate("group %d, %s: %s, epoch %s, does not have %d, which a reader saw on %s in epoch %s", m0(g), when, p.m.name, p.epoch, v, at.node, at.epoch)
			return
		}
	}
}

// judgeOpening checks a server that lets clients in. Before the end of its lease one of an older epoch may still do so where another may
// be elected meanwhile: it shows the past, and what it writes nobody acknowledges.
func (w *World) judgeOpening(p *proc) {
	w.judgeHistory(p, "as it opens", func(e fsm.Epoch) bool { return !w.early && !w.liars || !p.epoch.Less(e) })
}

func everyEpoch(fsm.Epoch) bool { return true }

func m0(g *groupTruth) int { return int(g.id) }
