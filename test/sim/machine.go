package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"matriarch/consensus"
	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
	"matriarch/internal/conductor"
	"matriarch/transport"
)

// machine is one host: two addresses, one for the agent's process and one for PostgreSQL, so that either can stop alone.
type machine struct {
	w        *World
	id       fsm.NodeID
	name     string
	group    fsm.GroupID
	host     string
	pgHost   string
	raw      float64 // rates of the clocks
	boot     float64
	boots    int // power cuts so far
	identity *transport.NodeTLS

	server       *server
	sentinel     *sentinel
	agent        *process
	frozen       bool         // the whole machine
	hung         *hang        // PostgreSQL's disk; nil: it answers
	lost         atomic.Int64 // what its clocks missed while they stood still
	tags         fsm.Tags
	lastReceiver string
}

func (w *World) byID(id fsm.NodeID) *machine {
	for _, m := range w.machines {
		if m.id == id {
			return m
		}
	}
	return nil
}

// addMachine makes a host that is switched off.
func (w *World) addMachine(group fsm.GroupID) (*machine, error) {
	n := len(w.machines) + 1
	m := &machine{
		w: w, id: fsm.NodeID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)), name: fmt.Sprint("n", n), group: group,
		host: fmt.Sprint("n", n), pgHost: fmt.Sprint("p", n),
		raw: 1 + (w.rng.Float64()*2-1)*lease.Drift/1000, boot: 1 + (w.rng.Float64()*2-1)*0.02,
	}
	m.tags = w.tag(group)
	m.server = &server{w: w, m: m, lineage: map[fsm.Timeline]fsm.Epoch{}, credentials: map[fsm.Epoch]bool{}}
	w.machines = append(w.machines, m)
	key, csr, err := transport.NewKeyAndCSR()
	if err != nil {
		return nil, err
	}
	cert, err := w.ca.SignCSR(csr, string(m.id), m.name, nil, time.Now())
	if err != nil {
		return nil, err
	}
	m.identity, err = transport.NewNodeTLS(cert, key, w.ca.CertPEM(), 1)
	return m, err
}

func (m *machine) node() fsm.Node {
	return fsm.Node{ID: m.id, Name: m.name, Group: m.group, Peer: m.host + ":7400", Postgres: m.pgHost + ":5432", Protocol: fsm.Protocol, Tags: m.tags}
}

// clock reads both clocks, which start anywhere and run at rates of their own.
func (m *machine) clock() lease.Stamp {
	e := float64(time.Since(m.w.began) - time.Duration(m.lost.Load()))
	return lease.Stamp{Raw: time.Hour + time.Duration(e*m.raw), Boot: 2*time.Hour + time.Duration(e*m.boot)}
}

// gate stops the goroutines of a process at their next step, as SIGSTOP would.
type gate struct {
	mu     sync.Mutex
	closed chan struct{}
}

func (g *gate) pass() {
	for {
		g.mu.Lock()
		c := g.closed
		g.mu.Unlock()
		if c == nil {
			return
		}
		<-c
	}
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		g.closed = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		close(g.closed)
		g.closed = nil
	}
}

// process is one run of the agent with its Raft peer.
type process struct {
	m      *machine
	gate   gate
	slow   gate // delays the application of log entries
	disk   gate // of the Raft log
	node   *consensus.Node
	agent  *agent.Agent
	cond   *conductor.Conductor
	leads  atomic.Bool
	behind atomic.Pointer[fsm.State] // see stall
	lead   atomic.Pointer[leadership]
	ctx    context.Context
	client *transport.Client
	cancel context.CancelFunc
	done   chan struct{}
}

// startAgent starts the process; first makes the cluster.
func (m *machine) startAgent(first *fsm.Bootstrap) error {
	w := m.w
	p := &process{m: m, done: make(chan struct{})}
	log := slog.New(lines{w: w, who: m.name})
	network := w.net.Host(m.host)
	mux, err := transport.Listen(network, m.host+":7400", transport.ServerConfig{Identity: m.identity})
	if err != nil {
		return err
	}
	dialer := &transport.Dialer{Network: network, Identity: m.identity, Timeout: 2 * time.Second}
	rpc := transport.NewRPCServer(nil)
	p.client = transport.NewClient(dialer)
	seeds := map[fsm.NodeID]string{}
	for _, o := range w.machines {
		seeds[o.id] = o.host + ":7400"
	}
	p.cond = conductor.New(conductor.Config{Recruiter: recruiter{p}, Planner: planner{p}, Log: log})
	p.node, err = consensus.Open(consensus.Config{
		ID: m.id, Name: m.name, Advertise: m.host + ":7400", Dir: filepath.Join(w.dir, m.name), Seeds: seeds, Mux: mux, Dialer: dialer, RPC: rpc,
		Client: p.client, Clock: p.leaderClock, Log: log, OnChange: p.changed, OnWrite: p.disk.pass,
		Lead: func(ctx context.Context, l consensus.Leadership) {
			p.lead.Store(&leadership{l, p})
			p.leads.Store(true)
			defer p.leads.Store(false)
			p.cond.Run(ctx, leadership{l, p})
		},
	})
	if err != nil {
		return errors.Join(err, mux.Close())
	}
	if first != nil {
		if err := p.node.Bootstrap(*first); err != nil {
			return err
		}
	}
	w.mu.Lock()
	if m.sentinel == nil || m.sentinel.dead {
		m.sentinel = newSentinel(m)
	}
	w.mu.Unlock()
	p.agent = agent.New(agent.Config{
		Self: m.id, Control: control{p}, Postgres: hands{m.server, &p.gate}, Sentinel: port{m, &p.gate}, Peers: control{p},
		Clock: func() lease.Stamp { p.gate.pass(); return m.clock() }, Log: log,
	})
	transport.Register(rpc, "recruit", func(ctx context.Context, _ transport.Peer, req recruitRequest) (decide.Recruit, error) {
		p.gate.pass()
		return p.agent.Recruit(ctx, req.Epoch)
	})
	transport.Register(rpc, "word", func(ctx context.Context, _ transport.Peer, r decide.WordRequest) (struct{}, error) {
		p.gate.pass()
		return struct{}{}, p.agent.Word(ctx, r)
	})
	transport.Register(rpc, "probe", func(ctx context.Context, _ transport.Peer, req probeRequest) (decide.Probe, error) {
		return p.probe(ctx, req)
	})
	p.run(mux, rpc)
	return nil
}

func (p *process) run(mux *transport.Mux, rpc *transport.RPCServer) {
	ctx, cancel := context.WithCancel(p.m.w.ctx)
	p.ctx, p.cancel = ctx, cancel
	w := p.m.w
	w.mu.Lock()
	p.m.agent = p
	w.noteLocked("%s: agent starts", p.m.name)
	w.mu.Unlock()
	w.background.Go(func() {
		var wg sync.WaitGroup
		wg.Go(func() { _ = rpc.Serve(mux.Listener(transport.KindRPC)) })
		wg.Go(func() { _ = p.agent.Run(ctx) })
		err := p.node.Run(ctx)
		if err != nil && ctx.Err() == nil {
			w.note("%s: consensus ends: %v", p.m.name, err)
		}
		cancel()
		if err := errors.Join(rpc.Close(), mux.Close(), p.node.Close()); err != nil {
			w.note("%s: %v", p.m.name, err)
		}
		p.client.Close()
		wg.Wait()
		close(p.done)
	})
}

// kill ends the agent's process as by kill -9: what it does in the network ends first.
func (p *process) kill() {
	p.m.w.note("%s: agent dies", p.m.name)
	p.m.w.net.Kill(p.m.host)
	p.cancel()
	p.gate.open()
	p.slow.open()
	p.disk.open()
	<-p.done
	p.m.w.mu.Lock()
	p.m.agent = nil
	p.m.w.mu.Unlock()
}

// compareEvery is how many entries lie between those after which all nodes must have the same state, byte for byte.
const compareEvery = 64

// changed checks every entry on every node.
func (p *process) changed(prev, next *fsm.State) {
	p.slow.pass()
	w := p.m.w
	w.mu.Lock()
	if err := fsm.Invariant(prev, next); err != nil && prev.Index > 0 && next.Index-prev.Index < 5 {
		w.violate("%s: entry %d: %v", p.m.name, next.Index, err)
	}
	if next.Index%compareEvery == 0 {
		b, _ := json.Marshal(next)
		if had, ok := w.states[next.Index]; ok && had != string(b) {
			w.violate("%s: the state after entry %d differs from another node's:\n%s\n%s", p.m.name, next.Index, b, had)
		}
		w.states[next.Index] = string(b)
	}
	w.lossy(next)
	w.watching = slices.DeleteFunc(w.watching, func(seen func(*fsm.State) bool) bool { return seen(next) })
	w.mu.Unlock()
	if p.agent != nil {
		p.agent.Changed(prev, next)
	}
	p.cond.Changed(prev, next)
}

// control is consensus as the agent sees it.
type control struct{ p *process }

func (c control) State() *fsm.State { c.p.gate.pass(); return c.p.agentState(c.p.node.State()) }

func (c control) Submit(ctx context.Context, cmd fsm.Command) (fsm.Result, error) {
	c.p.gate.pass()
	defer c.p.gate.pass()
	if r, ok := cmd.(fsm.Release); ok && c.p.m.w.lacks(ruleEpoch) {
		return c.p.releaseAny(ctx, r)
	}
	return c.p.node.Submit(ctx, cmd)
}

func (c control) Read(ctx context.Context) (*fsm.State, error) {
	c.p.gate.pass()
	defer c.p.gate.pass()
	return c.p.node.Read(ctx)
}

func (c control) Keepalive(ctx context.Context, b agent.Beat) (agent.Answer, error) {
	c.p.gate.pass()
	defer c.p.gate.pass()
	b = c.p.asked(b)
	a, err := c.p.node.Keepalive(ctx, consensus.Keepalive{Node: b.Node, Instance: b.Instance, Group: b.Group, Epoch: b.Epoch, Report: b.Report})
	return c.p.judged(b, agent.Answer{Held: a.Held, Lease: a.Lease, Index: a.Index, NextIn: a.NextIn, Removed: a.Removed, Present: a.Present}), err
}

func (c control) HeardLeader() time.Duration { c.p.gate.pass(); return c.p.node.Status().LastContact }

// Word asks a member by RPC.
func (c control) Word(ctx context.Context, to fsm.Node, r decide.WordRequest) error {
	c.p.gate.pass()
	defer c.p.gate.pass()
	return c.p.client.Call(ctx, to.Peer, string(to.ID), "word", r, &struct{}{})
}

type leadership struct {
	consensus.Leadership
	p *process
}

func (l leadership) State() *fsm.State { return l.p.conductorState(l.Leadership.State()) }

func (l leadership) Term() uint64 { return l.Leadership.Term }

func (l leadership) Submit(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	return l.Propose(ctx, c)
}

type recruitRequest struct {
	Epoch fsm.Epoch `json:"epoch"`
}

type recruiter struct{ p *process }

func (r recruiter) Recruit(ctx context.Context, to fsm.Node, e fsm.Epoch) (rec decide.Recruit, err error) {
	r.p.gate.pass()
	defer r.p.gate.pass()
	if to.ID == r.p.m.id {
		return r.p.agent.Recruit(ctx, e)
	}
	err = r.p.client.Call(ctx, to.Peer, string(to.ID), "recruit", recruitRequest{e}, &rec)
	return rec, err
}

type probeRequest struct {
	Primary fsm.NodeID `json:"primary"`
}

func (r recruiter) Probe(ctx context.Context, to, primary fsm.Node) (pr decide.Probe, err error) {
	r.p.gate.pass()
	defer r.p.gate.pass()
	if to.ID == r.p.m.id {
		return r.p.probe(ctx, probeRequest{primary.ID})
	}
	err = r.p.client.Call(ctx, to.Peer, string(to.ID), "probe", probeRequest{primary.ID}, &pr)
	return pr, err
}

// probe opens the primary's port and waits for any answer: a server that is frozen gives none.
func (p *process) probe(ctx context.Context, req probeRequest) (decide.Probe, error) {
	p.gate.pass()
	w := p.m.w
	w.mu.Lock()
	o := w.byID(req.Primary)
	w.mu.Unlock()
	pctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	c, err := w.net.Host(p.m.pgHost).Dial(pctx, o.pgHost+":5432")
	if err == nil {
		defer func() { _ = c.Close() }()
		if err = w.send(c, hello{kind: "probe"}); err == nil {
			_, err = w.receive(c, 500*time.Millisecond)
		}
	}
	p.gate.pass()
	if err != nil {
		return decide.Probe{Dead: true, Text: "its port: " + err.Error()}, nil
	}
	return decide.Probe{Text: "its port answers"}, nil
}

// lines is a slog handler that writes to the trace.
type lines struct {
	w    *World
	who  string
	with string
}

func (l lines) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l lines) Handle(_ context.Context, r slog.Record) error {
	text := l.with
	r.Attrs(func(a slog.Attr) bool { text += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	l.w.note("%s: [%s] %s%s", l.who, r.Level, r.Message, text)
	return nil
}

func (l lines) WithAttrs(as []slog.Attr) slog.Handler {
	for _, a := range as {
		l.with += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return l
}

func (l lines) WithGroup(string) slog.Handler { return l }
