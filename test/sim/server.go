package sim

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// server is one PostgreSQL: its files, and its processes while it runs. Guarded by World.mu.
type server struct {
	w    *World
	m    *machine
	dir  *dataDir
	conf decide.Conf // the managed files
	proc *proc

	// The node's own record, outside the data directory.
	promise     fsm.Epoch
	lineage     map[fsm.Timeline]fsm.Epoch
	word        time.Duration
	unfinished  string
	credentials map[fsm.Epoch]bool
	aside       int
	copies      int // how often the data directory was taken from another server
}

// proc is one run of the server.
type proc struct {
	w       *World
	m       *machine
	s       *server
	ctx     context.Context
	cancel  context.CancelFunc
	cond    *sync.Cond // everything of this run; on World.mu
	parent  *sentinel
	pid     int
	dead    bool          // it does nothing any more; processes may be left while their disk hangs
	gone    chan struct{} // closed when none is left
	why     string        // it ended
	asleep  bool          // a process waits for a disk that hangs, and nothing interrupts it
	flights []*flight     // what such processes were writing
	ready   bool          // answers connections
	primary bool
	epoch   fsm.Epoch // of the promotion

	stopping    bool            // a fast stop has begun
	sessions    context.Context // all but walsenders that stream
	endSessions context.CancelFunc

	conf     decide.Conf // as postmaster and new sessions have it
	version  int         // of conf
	defined  bool        // what the checkpointer has told the backends: commits wait
	defVer   int
	replayed int
	receiver *receiver
	senders  map[*sender]bool
	synced   int // commits up to here are released
	visible  map[uint64]bool
	all      int // records up to here are visible
}

var errGone = errors.New("the server is gone")

// start begins a run, always as a standby. The mutex is held.
func (s *server) start(parent *sentinel) *proc {
	ctx, cancel := context.WithCancel(s.w.ctx)
	s.w.lastID++
	p := &proc{
		w: s.w, m: s.m, s: s, ctx: ctx, cancel: cancel, cond: sync.NewCond(&s.w.mu), parent: parent, pid: int(s.w.lastID), gone: make(chan struct{}),
		conf: s.conf, defined: s.conf.Sync.K > 0, senders: map[*sender]bool{}, visible: map[uint64]bool{},
		replayed: max(s.dir.ended, s.w.rng.IntN(len(s.dir.wal)+1)), // a stop in good order leaves nothing to replay
	}
	p.sessions, p.endSessions = context.WithCancel(ctx)
	s.proc = p
	s.w.noteLocked("%s: PostgreSQL starts on timeline %d at %s", s.m.name, s.dir.tl, lsn(len(s.dir.wal)))
	s.w.background.Go(p.recovery)
	return p
}

// kill ends the run at once, but for processes that wait for the disk: they are not there before it answers. The mutex is held.
func (p *proc) kill(why string) {
	if p.dead {
		return
	}
	p.dead, p.why = true, why
	p.w.noteLocked("%s: PostgreSQL ends: %s", p.m.name, why)
	p.cancel()
	p.w.net.Kill(p.m.pgHost)
	p.w.judgeWriters(p.m)
	p.cond.Broadcast()
	if p.asleep && p.m.hung != nil {
		p.w.noteLocked("%s: processes are left, which wait for the disk", p.m.name)
		nudge(p.parent.events)
		return
	}
	p.vanish()
}

// vanish is the end of the last process. The mutex is held.
func (p *proc) vanish() {
	if p.s.proc == p {
		p.s.proc = nil
	}
	p.parent.exit = p.why
	nudge(p.parent.events)
	close(p.gone)
}

// await waits until ok, the end of the run or of ctx. The mutex is held, and the machine not frozen when it returns nil.
func (p *proc) await(ctx context.Context, ok func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		p.cond.Broadcast()
	})
	defer stop()
	for {
		switch {
		case p.dead:
			return errGone
		case !p.m.frozen && ok():
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		}
		p.cond.Wait()
	}
}

func always() bool { return true }

// recovery is the startup process: it replays, opens the port, and keeps a walreceiver.
func (p *proc) recovery() {
	if pause(p.ctx, p.w.draw(10*time.Millisecond, 150*time.Millisecond)) != nil {
		return
	}
	ln, err := p.w.net.Host(p.m.pgHost).Listen(p.m.pgHost + ":5432")
	if err != nil {
		return
	}
	p.w.background.Go(func() { p.accept(ln) })
	p.w.mu.Lock()
	if p.flushed(p.ctx) != nil {
		p.w.mu.Unlock()
		return
	}
	p.ready = true
	p.s.dir.ended = 0
	p.w.mu.Unlock()
	for {
		p.w.mu.Lock()
		err := p.await(p.ctx, always)
		if err != nil || p.primary || p.stopping {
			p.w.mu.Unlock()
			return
		}
		n := len(p.s.dir.wal)
		if p.replayed < n && p.w.rng.IntN(10) > 0 {
			p.replayed = min(n, p.replayed+1+p.w.rng.IntN(50))
			p.cond.Broadcast()
		}
		switch r := p.receiver; { // it looks at its settings only when it has nothing to replay, and not always then
		case p.replayed < n:
		case r == nil:
			p.fork(p.conf)
		case (r.conf.Upstream != p.conf.Upstream || r.conf.Epoch != p.conf.Epoch) && p.w.rng.IntN(20) == 0:
			r.cancel()
		}
		wait := p.between(5, 60)
		p.w.mu.Unlock()
		if pause(p.ctx, wait) != nil {
			return
		}
	}
}

// between draws milliseconds; the mutex is held.
func (p *proc) between(lo, hi int) time.Duration {
	return p.w.between(time.Duration(lo)*time.Millisecond, time.Duration(hi)*time.Millisecond)
}

func (p *proc) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		p.w.background.Go(func() {
			defer func() { _ = c.Close() }()
			p.serve(c)
		})
	}
}

// hello opens every connection.
type hello struct {
	kind  string // replication, backup, client
	node  fsm.NodeID
	epoch fsm.Epoch
	tl    fsm.Timeline
	have  int
}

type refusal struct{ why string }

func (p *proc) serve(c net.Conn) {
	v, err := p.w.receive(c, 10*time.Second)
	h, ok := v.(hello)
	if err != nil || !ok {
		return
	}
	p.w.mu.Lock()
	if p.await(p.ctx, always) != nil {
		p.w.mu.Unlock()
		return
	}
	phase, stopping := p.conf.Phase, p.stopping
	if p.primary && p.w.lacks(ruleFirstCommit) {
		phase = decide.Open
	}
	p.w.mu.Unlock()
	switch {
	case stopping:
		_ = p.w.send(c, refusal{errStopping.Error()})
	case phase == decide.Closed || phase == "" || (h.kind == "client" && phase != decide.Open):
		_ = p.w.send(c, refusal{"no pg_hba.conf entry"})
	case h.kind == "replication":
		p.walsender(c, h)
	case h.kind == "backup":
		p.backup(c)
	case h.kind == "client":
		p.session(c)
	}
}

// commit appends a record and waits for the synchronous standbys.
func (p *proc) commit(ctx context.Context, value uint64) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if err := p.query(ctx, always); err != nil {
		return err
	}
	if !p.primary {
		return errors.New("cannot execute INSERT in a read-only transaction")
	}
	d, at := p.s.dir, 0
	p.w.lastID++
	r := record{id: p.w.lastID, tl: d.tl, value: value}
	if err := p.write(p.ctx, func() { d.wal = append(d.wal, r); at = len(d.wal) }); err != nil {
		return err
	}
	p.cond.Broadcast()
	if err := p.query(ctx, func() bool { return !p.defined || p.synced >= at }); err != nil {
		return err
	}
	if value != 0 {
		p.visible[value] = true
		p.w.group(p.m.group).acked[value] = place{p.m.name, p.epoch}
	}
	return nil
}

// write and read are what a client's session asks; they are answered by themselves.
type (
	write  struct{ value uint64 }
	read   struct{}
	result struct {
		err    error
		values []uint64
	}
)

// session serves one client. A read shows what is committed and released.
func (p *proc) session(c net.Conn) {
	stop := context.AfterFunc(p.sessions, func() { _ = c.Close() })
	defer stop()
	for {
		v, err := p.w.receive(c, time.Minute)
		if err != nil {
			return
		}
		var res result
		switch q := v.(type) {
		case write:
			res.err = p.commit(p.sessions, q.value)
		case read:
			p.w.mu.Lock()
			res.err = p.query(p.sessions, always)
			if res.err == nil && !p.primary {
				res.err = errors.New("not a primary")
			}
			if res.err == nil {
				p.look(&res)
			}
			p.w.mu.Unlock()
		}
		if errors.Is(res.err, errGone) || p.sessions.Err() != nil || p.w.send(c, res) != nil {
			return
		}
	}
}

// look fills in what is visible. Reads of an open primary are linearizable while nobody fails over before the lease ends: all that was
// acknowledged anywhere must be there.
func (p *proc) look(res *result) {
	g := p.w.group(p.m.group)
	have := 0
	for i, r := range p.s.dir.wal {
		if r.value != 0 && (i < p.all || p.visible[r.value]) {
			res.values = append(res.values, r.value)
			if _, ok := g.seen[r.value]; !ok {
				g.seen[r.value] = place{p.m.name, p.epoch}
			}
			if _, ok := g.acked[r.value]; ok {
				have++
			}
		}
	}
	if have != len(g.acked) && !p.w.liars && !p.w.early && !g.lossy {
		p.w.violate("group %d: a reader on %s (epoch %s) sees %d of %d acknowledged values", p.m.group, p.m.name, p.epoch, have, len(g.acked))
	}
}

// backup sends a copy of the data directory, as it is at the end.
func (p *proc) backup(c net.Conn) {
	if pause(p.sessions, p.w.draw(50*time.Millisecond, 1500*time.Millisecond)) != nil {
		return
	}
	p.w.mu.Lock()
	if p.query(p.sessions, p.flushes) != nil { // it begins with a checkpoint
		p.w.mu.Unlock()
		return
	}
	msg := copied{dir: p.s.dir.clone(), primary: p.primary}
	p.w.mu.Unlock()
	_ = p.w.send(c, msg)
	_, _ = p.w.receive(c, 5*time.Second)
}

type copied struct {
	dir     *dataDir
	primary bool
}

// promote makes the server writable after a while. The mutex is held.
func (p *proc) promote(e fsm.Epoch) {
	p.epoch = e
	p.w.background.Go(func() {
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		wait := p.between(20, 250)
		if p.w.brisk {
			wait = time.Millisecond
		}
		p.w.mu.Unlock()
		err := pause(p.ctx, wait)
		p.w.mu.Lock()
		d := p.s.dir
		if err != nil || p.query(p.ctx, func() bool { return p.replayed == len(d.wal) }) != nil || p.flushed(p.ctx) != nil || p.stopping {
			return
		}
		if r := p.receiver; r != nil {
			r.cancel()
			if p.query(p.ctx, func() bool { return p.receiver == nil }) != nil {
				return
			}
		}
		d.history = append(d.history, fork{d.tl, len(d.wal)})
		p.all = len(d.wal)
		d.tl = d.known + 1
		d.known = d.tl
		p.w.lastID++
		d.wal = append(d.wal, record{id: p.w.lastID, tl: d.tl})
		p.primary, p.replayed, p.synced = true, len(d.wal), 0
		p.w.noteLocked("%s: promoted under epoch %s, timeline %d at %s", p.m.name, e, d.tl, lsn(p.all))
		p.w.judgeWriters(p.m)
		p.cond.Broadcast()
	})
}
