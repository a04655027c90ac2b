package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/transport"
)

const clusterID = "0c0c0c0c-0000-4000-8000-000000000001"

// harness runs nodes over one network, which is a FakeNet in bubbles.
type harness struct {
	t       *testing.T
	fake    *transport.FakeNet // nil: real TCP
	ca      *transport.CA
	inc     uint64
	started time.Time
	timing  Timing
	nodes   map[fsm.NodeID]*peer
	avoid   bool // LeaderAvoid: off unless a test is about it
	lead    func(ctx context.Context, l Leadership)
	log     *slog.Logger
}

type peer struct {
	*Node
	id     fsm.NodeID
	addr   string
	dir    string
	mux    *transport.Mux
	rpc    *transport.RPCServer
	client *transport.Client
	cancel context.CancelFunc
	done   chan error
	skew   atomic.Int64                  // nanoseconds added to the lease clock
	hang   atomic.Pointer[chan struct{}] // log writes wait for it
	fatal  error
}

func bubble(t *testing.T, f func(t *testing.T, h *harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t)
		h.fake = transport.NewFakeNet()
		defer h.close()
		f(t, h)
	})
}

func newHarness(t *testing.T) *harness {
	ca, err := transport.NewCA(clusterID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, ca: ca, inc: 1, started: time.Now(), nodes: map[fsm.NodeID]*peer{}, log: slog.New(slog.DiscardHandler)}
	if os.Getenv("CONSENSUS_LOG") != "" {
		h.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return h
}

func (h *harness) identity(id fsm.NodeID) *transport.NodeTLS {
	h.t.Helper()
	key, csr, err := transport.NewKeyAndCSR()
	if err != nil {
		h.t.Fatal(err)
	}
	cert, err := h.ca.SignCSR(csr, string(id), "name-"+string(id), nil, time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	tls, err := transport.NewNodeTLS(cert, key, h.ca.CertPEM(), h.inc)
	if err != nil {
		h.t.Fatal(err)
	}
	return tls
}

func (h *harness) network(addr string) transport.Network {
	if h.fake != nil {
		return h.fake.Host(addr)
	}
	host, _, _ := net.SplitHostPort(addr)
	return transport.TCP{Source: net.ParseIP(host)}
}

// open makes a node, perhaps again; addr may differ from the last time.
func (h *harness) open(id fsm.NodeID, addr string) *peer {
	h.t.Helper()
	p := h.nodes[id]
	if p == nil {
		p = &peer{id: id, dir: filepath.Join(h.t.TempDir(), string(id))}
		h.nodes[id] = p
	}
	p.addr = addr
	identity, network := h.identity(id), h.network(addr)
	mux, err := transport.Listen(network, addr, transport.ServerConfig{Identity: identity, Log: h.log})
	if err != nil {
		h.t.Fatal(err)
	}
	d := &transport.Dialer{Network: network, Identity: identity, Timeout: 2 * time.Second}
	p.mux, p.rpc, p.client = mux, transport.NewRPCServer(h.log), transport.NewClient(d)
	seeds := map[fsm.NodeID]string{}
	for _, o := range h.nodes {
		if o.Node != nil {
			seeds[o.id] = o.addr
		}
	}
	p.Node, err = Open(Config{
		ID: id, Name: "name-" + string(id), Advertise: addr, Dir: p.dir, Seeds: seeds, Mux: mux, Dialer: d, RPC: p.rpc, Client: p.client,
		Clock: func() lease.Stamp {
			e := time.Since(h.started) + time.Duration(p.skew.Load())
			return lease.Stamp{Raw: e, Boot: e}
		},
		Log: h.log.With("on", string(id)), Timing: h.timing, Lead: h.lead,
		OnFatal: func(err error) { p.fatal = err },
	})
	if err != nil {
		h.t.Fatal(err)
	}
	p.store.write = func(logs []*raft.Log) error {
		if c := p.hang.Load(); c != nil {
			<-*c
		}
		return p.store.BoltStore.StoreLogs(logs)
	}
	return p
}

// run starts a node that is open.
func (p *peer) run() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan error, 1)
	served := make(chan error, 1)
	go func() { served <- p.rpc.Serve(p.mux.Listener(transport.KindRPC)) }()
	go func() {
		err := p.Run(ctx)
		err = errors.Join(err, p.rpc.Close(), p.mux.Close(), p.Close())
		p.client.Close()
		<-served
		p.done <- err
	}()
}

// bootstrap makes a cluster of one.
func (h *harness) bootstrap(id fsm.NodeID, addr string, settings fsm.Settings) *peer {
	h.t.Helper()
	p := h.open(id, addr)
	err := p.Bootstrap(fsm.Bootstrap{
		ClusterID: clusterID, Incarnation: h.inc, Settings: settings, Node: node(id, addr, 0),
		Token: &fsm.Token{ID: "tok", Uses: 100},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	p.run()
	return p
}

func node(id fsm.NodeID, addr string, g fsm.GroupID) fsm.Node {
	return fsm.Node{ID: id, Name: "name-" + string(id), Group: g, Peer: addr, Postgres: string(id) + ":5432", Protocol: fsm.Protocol}
}

// join adds a node to the state and starts it.
func (h *harness) join(by *peer, id fsm.NodeID, addr string, g fsm.GroupID) *peer {
	h.t.Helper()
	h.submit(by, fsm.Join{Node: node(id, addr, g), Token: "tok"})
	p := h.open(id, addr)
	p.run()
	return p
}

// stop ends a node in good order.
func (h *harness) stop(p *peer) {
	h.t.Helper()
	if p.cancel == nil {
		return
	}
	p.cancel()
	p.cancel = nil
	if err := <-p.done; err != nil && p.fatal == nil && !errors.Is(err, net.ErrClosed) {
		h.t.Errorf("stop %s: %v", p.id, err)
	}
}

// kill cuts a node's power.
func (h *harness) kill(p *peer) {
	h.t.Helper()
	h.fake.Isolate(p.addr)
	h.fake.Kill(p.addr)
	h.stop(p)
	h.fake.Rejoin(p.addr)
}

func (h *harness) restart(p *peer) {
	h.t.Helper()
	h.open(p.id, p.addr)
	p.run()
}

func (h *harness) close() {
	for _, p := range h.nodes {
		h.stop(p)
	}
	if h.fake != nil {
		time.Sleep(3 * time.Second) // for what net/http dials in the background
	}
}

// cluster makes n nodes named a, b, c ... in the given groups and waits until votes and logs are as they will stay.
func (h *harness) cluster(groups ...fsm.GroupID) []*peer {
	h.t.Helper()
	var out []*peer
	for i, g := range groups {
		id := fsm.NodeID(string(rune('a' + i)))
		addr := h.addr(id, i)
		if i == 0 {
			settings := fsm.DefaultSettings()
			settings.LeaderAvoid = h.avoid
			out = append(out, h.bootstrap(id, addr, settings))
			continue
		}
		out = append(out, h.join(out[0], id, addr, g))
	}
	want := 1
	if len(groups) >= 3 {
		want = 3
	}
	if len(groups) >= 5 {
		want = 5
	}
	h.eventually(30*time.Second, "voters chosen", func() bool { return h.voters(out[0]) == want })
	h.eventually(30*time.Second, "everybody knows the leader", func() bool {
		return !slices.ContainsFunc(out, func(p *peer) bool { return p.leader() == "" || len(p.State().Nodes) != len(groups) })
	})
	return out
}

func (h *harness) addr(id fsm.NodeID, i int) string {
	if h.fake != nil {
		return "host-" + string(id) + ":7400"
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.7.%d:0", i+1))
	if err != nil {
		h.t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (h *harness) voters(p *peer) int {
	n := 0
	for _, s := range p.Status().Suffrage {
		if s == "voter" {
			n++
		}
	}
	return n
}

// leader waits for one ready leader among the running nodes and returns it.
func (h *harness) leader() *peer {
	h.t.Helper()
	var l *peer
	h.eventually(15*time.Second, "a leader is ready", func() bool {
		for _, p := range h.nodes {
			if t := p.term.Load(); p.cancel != nil && t != nil && h.reaches(p) {
				l = p
				return true
			}
		}
		return false
	})
	return l
}

// reaches tells whether a node's leadership is real: it can commit.
func (h *harness) reaches(p *peer) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	t := p.term.Load()
	if t == nil {
		return false
	}
	_, err := t.propose(ctx, encode(fsm.Tick{}))
	return err == nil
}

func (h *harness) eventually(within time.Duration, what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			for _, p := range h.nodes {
				if p.cancel != nil {
					h.t.Logf("%s: %+v", p.id, p.Status())
				}
			}
			h.t.Fatalf("not within %s: %s", within, what)
		}
	}
}

// submit proposes and demands success.
func (h *harness) submit(p *peer, c fsm.Command) fsm.Result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	r, err := p.Submit(ctx, c)
	if err != nil || !r.OK {
		h.t.Fatalf("submit %s at %s: %+v, %v", c.Kind(), p.id, r, err)
	}
	return r
}

func others(all []*peer, not ...*peer) []*peer {
	return slices.DeleteFunc(slices.Clone(all), func(p *peer) bool { return slices.Contains(not, p) })
}
