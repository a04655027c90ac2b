package transport

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// FakeNet is an in-memory network with faults for simulations in testing/synctest: it blocks only on condition variables and timers.
// Callers must not hold a mutex that others want across a read or write (two goroutines in one TLS handshake do): synctest does not
// count a mutex as blocked, so the clock would stand still.
// Make it inside the bubble. Hosts are named by the part of an address before the colon; methods take a host or an address.
//
// A cut link loses nothing: like TCP under packet loss it holds what was written (64 KiB a connection and direction, then writers
// block until their deadline) and delivers it in order once healed.
type FakeNet struct {
	mu        sync.Mutex
	change    *sync.Cond // topology, listeners and backlogs
	rng       *rand.Rand
	hosts     map[string]*fakeHost
	listeners map[string]*fakeListener
	conns     map[*fakeConn]struct{}
	cut       map[link]bool
	delay     map[link]time.Duration
	isolated  map[string]bool
	frozen    map[string]bool
	standard  time.Duration // delay of links without their own
	jitter    time.Duration
	resets    float64 // chance that a write resets its connection
	nextPort  int
}

type link struct{ from, to string }

const (
	fakeBacklog     = 128
	fakeDialTimeout = time.Minute // what a kernel's SYN retries amount to
)

// NewFakeNet makes an empty network without delays and faults.
func NewFakeNet() *FakeNet {
	n := &FakeNet{
		hosts: map[string]*fakeHost{}, listeners: map[string]*fakeListener{}, conns: map[*fakeConn]struct{}{},
		cut: map[link]bool{}, delay: map[link]time.Duration{}, isolated: map[string]bool{}, frozen: map[string]bool{},
		rng: rand.New(rand.NewPCG(1, 1)), nextPort: 40000,
	}
	n.change = sync.NewCond(&n.mu)
	return n
}

// Seed sets the source of jitter and random resets.
func (n *FakeNet) Seed(seed uint64) {
	n.update(func() { n.rng = rand.New(rand.NewPCG(seed, seed)) })
}

// Host returns the network as seen by one host, which exists from then on. After Kill the handle is dead and Host gives a new one.
func (n *FakeNet) Host(addr string) Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	name := hostOf(addr)
	h := n.hosts[name]
	if h == nil || h.dead {
		h = &fakeHost{net: n, name: name}
		n.hosts[name] = h
	}
	return h
}

// Cut holds everything sent from one host to the other; the other direction stays.
func (n *FakeNet) Cut(from, to string) {
	n.update(func() { n.cut[link{hostOf(from), hostOf(to)}] = true })
}

// Heal ends Cut(from, to); what was held arrives.
func (n *FakeNet) Heal(from, to string) {
	n.update(func() { delete(n.cut, link{hostOf(from), hostOf(to)}) })
}

// Isolate cuts a host off from all others, in both directions; it still reaches itself.
func (n *FakeNet) Isolate(host string) { n.update(func() { n.isolated[hostOf(host)] = true }) }

// Rejoin ends Isolate.
func (n *FakeNet) Rejoin(host string) { n.update(func() { delete(n.isolated, hostOf(host)) }) }

// HealAll ends every Cut and Isolate. Frozen hosts stay frozen, delays stay.
func (n *FakeNet) HealAll() {
	n.update(func() { clear(n.cut); clear(n.isolated) })
}

// Freeze stops delivery to and from a host, as if its processes were stopped: others still connect to its listeners, then hear nothing.
func (n *FakeNet) Freeze(host string) { n.update(func() { n.frozen[hostOf(host)] = true }) }

// Thaw ends Freeze; what was held arrives.
func (n *FakeNet) Thaw(host string) { n.update(func() { delete(n.frozen, hostOf(host)) }) }

// SetDelay sets the one-way delay of a link for data written from now on.
func (n *FakeNet) SetDelay(from, to string, d time.Duration) {
	n.update(func() { n.delay[link{hostOf(from), hostOf(to)}] = d })
}

// SetDefaultDelay sets the one-way delay of all links without their own, and a random addition of up to jitter for all links.
func (n *FakeNet) SetDefaultDelay(d, jitter time.Duration) {
	n.update(func() { n.standard, n.jitter = d, jitter })
}

// SetResets makes every write reset its connection with probability p (0 to 1).
func (n *FakeNet) SetResets(p float64) { n.update(func() { n.resets = p }) }

// Drop resets all connections between two hosts at once, at both ends, even over a cut link.
func (n *FakeNet) Drop(a, b string) {
	a, b = hostOf(a), hostOf(b)
	n.update(func() {
		for c := range n.conns {
			if (c.out.from == a && c.out.to == b) || (c.out.from == b && c.out.to == a) {
				c.reset()
			}
		}
	})
}

// Kill ends a host's processes: its listeners and connections close and its handles go dead. As after a kill -9, what it had sent
// still arrives, then a reset. For a power cut Isolate it first.
func (n *FakeNet) Kill(host string) {
	host = hostOf(host)
	n.update(func() {
		if h := n.hosts[host]; h != nil {
			h.dead = true
		}
		for _, l := range n.listeners {
			if l.host.name == host {
				l.close()
			}
		}
		for c := range n.conns {
			if c.out.from == host {
				c.finish(syscall.ECONNRESET)
			}
		}
	})
}

// update changes the topology and wakes everybody whom it may concern.
func (n *FakeNet) update(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	n.change.Broadcast()
	for c := range n.conns {
		c.in.wake.Broadcast()
		c.out.wake.Broadcast() // the other end may be closed and forgotten
	}
	for _, l := range n.listeners {
		l.wake.Broadcast()
	}
}

// carries reports whether packets pass from one host to the other.
func (n *FakeNet) carries(from, to string) bool {
	return !n.cut[link{from, to}] && (from == to || (!n.isolated[from] && !n.isolated[to]))
}

// delivers reports whether data written by one host reaches the other's reader.
func (n *FakeNet) delivers(from, to string) bool {
	return n.carries(from, to) && !n.frozen[from] && !n.frozen[to]
}

func (n *FakeNet) latency(from, to string) time.Duration {
	d, ok := n.delay[link{from, to}]
	if !ok {
		d = n.standard
	}
	if n.jitter > 0 {
		d += time.Duration(n.rng.Int64N(int64(n.jitter)))
	}
	return d
}

func (n *FakeNet) port() int {
	n.nextPort++
	return n.nextPort
}

// fakeHost is the Network of one host until it is killed.
type fakeHost struct {
	net  *FakeNet
	name string
	dead bool
}

// Listen implements Network.
func (h *fakeHost) Listen(addr string) (net.Listener, error) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	fail := func(err error) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: fakeAddr(addr), Err: err}
	}
	host, port, err := net.SplitHostPort(addr)
	switch {
	case err != nil:
		return fail(err)
	case h.dead:
		return fail(net.ErrClosed)
	case host != "" && host != h.name && host != "0.0.0.0":
		return fail(syscall.EADDRNOTAVAIL)
	}
	if port == "0" {
		port = strconv.Itoa(n.port())
	}
	addr = net.JoinHostPort(h.name, port)
	if n.listeners[addr] != nil {
		return fail(syscall.EADDRINUSE)
	}
	l := &fakeListener{host: h, addr: fakeAddr(addr), wake: sync.NewCond(&n.mu)}
	n.listeners[addr] = l
	n.change.Broadcast()
	return l, nil
}

// Dial implements Network.
func (h *fakeHost) Dial(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, fakeDialTimeout)
	defer cancel()
	c, err := h.dial(ctx, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: fakeAddr(addr), Err: err}
	}
	return c, nil
}

func (h *fakeHost) dial(ctx context.Context, addr string) (net.Conn, error) {
	n, to := h.net, hostOf(addr)
	n.mu.Lock()
	rtt := n.latency(h.name, to) + n.latency(to, h.name)
	n.mu.Unlock()
	if rtt > 0 {
		t := time.NewTimer(rtt)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	stop := context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.change.Broadcast()
	})
	defer stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case h.dead:
			return nil, net.ErrClosed
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case n.hosts[to] == nil:
			return nil, fmt.Errorf("%s: %w", to, errNoHost)
		case n.frozen[h.name] || !n.carries(h.name, to) || !n.carries(to, h.name):
		case n.listeners[addr] == nil:
			return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
		case len(n.listeners[addr].backlog) < fakeBacklog:
			return n.connect(h.name, n.listeners[addr]), nil
		}
		n.change.Wait()
	}
}

// connect makes both ends and queues the server's.
func (n *FakeNet) connect(from string, l *fakeListener) *fakeConn {
	local := fakeAddr(net.JoinHostPort(from, strconv.Itoa(n.port())))
	there, back := newStream(n, from, l.host.name), newStream(n, l.host.name, from)
	client := &fakeConn{net: n, local: local, remote: l.addr, in: back, out: there}
	server := &fakeConn{net: n, local: l.addr, remote: local, in: there, out: back}
	client.peer, server.peer = server, client
	n.conns[client], n.conns[server] = struct{}{}, struct{}{}
	l.backlog = append(l.backlog, server)
	l.wake.Broadcast()
	return client
}

type fakeListener struct {
	host    *fakeHost
	addr    fakeAddr
	wake    *sync.Cond
	backlog []*fakeConn
	closed  bool
}

// Accept implements net.Listener.
func (l *fakeListener) Accept() (net.Conn, error) {
	n := l.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if l.closed {
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
		}
		if len(l.backlog) > 0 && !n.frozen[l.host.name] {
			c := l.backlog[0]
			l.backlog = l.backlog[1:]
			n.change.Broadcast()
			return c, nil
		}
		l.wake.Wait()
	}
}

// Close implements net.Listener.
func (l *fakeListener) Close() error {
	l.host.net.mu.Lock()
	defer l.host.net.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.close()
	return nil
}

func (l *fakeListener) close() {
	l.closed = true
	n := l.host.net
	delete(n.listeners, string(l.addr))
	for _, c := range l.backlog {
		c.finish(syscall.ECONNRESET)
	}
	l.backlog = nil
	l.wake.Broadcast()
	n.change.Broadcast()
}

// Addr implements net.Listener.
func (l *fakeListener) Addr() net.Addr { return l.addr }

type fakeAddr string

func (a fakeAddr) Network() string { return "tcp" }
func (a fakeAddr) String() string  { return string(a) }

func hostOf(addr string) string {
	host, _, _ := strings.Cut(addr, ":")
	return host
}
