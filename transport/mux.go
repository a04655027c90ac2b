package transport

import (
	"container/list"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	defaultHandshakeTimeout = 5 * time.Second
	defaultMaxHandshakes    = 256
	// maxJoins bounds the connections of hosts that have no certificate yet.
	maxJoins = 64
)

// ServerConfig says how a Mux admits connections. Identity is required.
type ServerConfig struct {
	Identity *NodeTLS
	// Log gets one line a minute for each host and reason that is refused; nil discards.
	Log *slog.Logger
	// Allow may refuse an authenticated peer, for instance a removed node; the peer is told the error's text. Optional.
	Allow func(Kind, Peer) error
	// HandshakeTimeout bounds a handshake, and how long an accepted connection waits for its listener; 0 means 5 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes bounds concurrent handshakes; one more ends the oldest. 0 means 256.
	MaxHandshakes int
}

// Mux is a node's one port. It hands each admitted connection to the listener of its kind.
type Mux struct {
	cfg   ServerConfig
	ln    net.Listener
	kinds map[Kind]*kindListener
	quiet quiet
	done  chan struct{}
	wg    sync.WaitGroup

	mu      sync.Mutex
	pending *list.List // of net.Conn in handshake, oldest first
	live    map[*conn]struct{}
	joins   int
	closed  bool
}

// Listen opens the port and begins to accept. Close the Mux to end it.
func Listen(network Network, addr string, cfg ServerConfig) (*Mux, error) {
	if cfg.Identity == nil {
		return nil, errors.New("open peer port: no identity given")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = defaultHandshakeTimeout
	}
	if cfg.MaxHandshakes == 0 {
		cfg.MaxHandshakes = defaultMaxHandshakes
	}
	ln, err := network.Listen(addr)
	if err != nil {
		return nil, fmt.Errorf("open peer port %s: %w", addr, err)
	}
	m := &Mux{cfg: cfg, ln: ln, kinds: map[Kind]*kindListener{}, done: make(chan struct{}), pending: list.New(), live: map[*conn]struct{}{}}
	for _, k := range Kinds() {
		m.kinds[k] = &kindListener{mux: m, conns: make(chan net.Conn), done: make(chan struct{})}
	}
	m.wg.Go(m.accept)
	return m, nil
}

// Listener gives the connections of one kind. There is one per kind; once closed, that kind is refused.
func (m *Mux) Listener(k Kind) net.Listener { return m.kinds[k] }

// Addr is the port's address.
func (m *Mux) Addr() net.Addr { return m.ln.Addr() }

// Close closes the port and every connection that came in by it, and waits until no handshake is left.
func (m *Mux) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	close(m.done)
	err := m.ln.Close()
	for e := m.pending.Front(); e != nil; e = e.Next() {
		e.Value.(net.Conn).Close()
	}
	for c := range m.live {
		c.raw.Close() // no TLS farewell: it could wait for a dead peer
	}
	m.mu.Unlock()
	m.wg.Wait()
	if err != nil {
		return fmt.Errorf("close peer port: %w", err)
	}
	return nil
}

func (m *Mux) accept() {
	const longest = time.Second
	wait := time.Duration(0)
	for {
		raw, err := m.ln.Accept()
		switch {
		case err == nil:
			wait = 0
			m.begin(raw)
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		// Out of file descriptors, or the like: it passes.
		wait = min(max(2*wait, 5*time.Millisecond), longest)
		m.complain("accept", "accept failed", err)
		select {
		case <-time.After(wait):
		case <-m.done:
			return
		}
	}
}

// begin starts a handshake of its own. Whoever floods the port pushes out the oldest handshake, and honest ones are short.
func (m *Mux) begin(raw net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		raw.Close()
		return
	}
	if m.pending.Len() >= m.cfg.MaxHandshakes {
		m.pending.Remove(m.pending.Front()).(net.Conn).Close()
	}
	e := m.pending.PushBack(raw)
	m.wg.Go(func() {
		c, kind, err := m.handshake(raw)
		m.mu.Lock()
		m.pending.Remove(e) // no-op when pushed out
		m.mu.Unlock()
		if err != nil {
			if c != nil {
				c.Close()
			}
			raw.Close()
			m.report(raw.RemoteAddr(), kind, err)
			return
		}
		m.deliver(c, kind)
	})
}

func (m *Mux) handshake(raw net.Conn) (*conn, Kind, error) {
	if err := raw.SetDeadline(time.Now().Add(m.cfg.HandshakeTimeout)); err != nil {
		return nil, "", err
	}
	a := &admission{id: m.cfg.Identity}
	t := tls.Server(raw, a.tlsConfig())
	if err := t.Handshake(); err != nil {
		if a.why != nil {
			err = a.why
		}
		return nil, a.kind, err
	}
	c := &conn{Conn: t, raw: raw, peer: a.peer, known: a.kind != KindJoin}
	if err := m.admit(c, a.kind); err != nil {
		writeRefusal(t, err.Error())
		return c, a.kind, fmt.Errorf("node %s: %w", a.peer.NodeID, err)
	}
	if err := writeWelcome(t); err != nil {
		return c, a.kind, err
	}
	return c, a.kind, raw.SetDeadline(time.Time{})
}

var (
	errTooManyJoins = errors.New("too many hosts are joining at once: try again in a minute")
	errClosing      = errors.New("node is stopping")
)

// admit registers the connection, so that Close finds it, unless it is one too many or not allowed.
func (m *Mux) admit(c *conn, k Kind) error {
	if k != KindJoin && m.cfg.Allow != nil {
		if err := m.cfg.Allow(k, c.peer); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return errClosing
	case k == KindJoin && m.joins >= maxJoins:
		return errTooManyJoins
	case k == KindJoin:
		m.joins++
	}
	m.live[c] = struct{}{}
	c.onClose = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.live, c)
		if k == KindJoin {
			m.joins--
		}
	}
	return nil
}

// deliver waits a while for the kind's listener; nobody else waits meanwhile.
func (m *Mux) deliver(c *conn, k Kind) {
	l := m.kinds[k]
	t := time.NewTimer(m.cfg.HandshakeTimeout)
	defer t.Stop()
	select {
	case l.conns <- c:
		return
	case <-t.C:
		m.complain(string(k), "connection dropped: nobody accepts this kind", nil, "kind", k)
	case <-l.done:
	case <-m.done:
	}
	c.Close()
}

// report logs why a handshake failed, at a bounded rate.
func (m *Mux) report(from net.Addr, k Kind, err error) {
	host, _, err2 := net.SplitHostPort(from.String())
	if err2 != nil {
		host = from.String()
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		m.cfg.Log.Debug("handshake abandoned", "remote", from.String(), "error", err)
	default:
		m.complain(host+reason(err), "handshake refused", err, "remote", host, "kind", k)
	}
}

func reason(err error) string {
	for _, known := range []error{ErrForeignCluster, ErrOtherIncarnation, ErrUntrusted, errNotMatriarch} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return ""
}

func (m *Mux) complain(key, msg string, err error, args ...any) {
	if !m.quiet.allow(key) {
		return
	}
	if err != nil {
		args = append(args, "error", err)
	}
	m.cfg.Log.Warn(msg, args...) //nolint:sloglint // the callers' messages are constants
}

// quiet lets each key speak once a minute.
type quiet struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (q *quiet) allow(key string) bool {
	const every, most = time.Minute, 1024
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if t, ok := q.last[key]; ok && now.Sub(t) < every {
		return false
	}
	if q.last == nil || len(q.last) >= most {
		q.last = map[string]time.Time{}
	}
	q.last[key] = now
	return true
}

// kindListener implements net.Listener for one kind.
type kindListener struct {
	mux   *Mux
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *kindListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
	case <-l.mux.done:
	}
	return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
}

func (l *kindListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *kindListener) Addr() net.Addr { return l.mux.Addr() }

// conn is an authenticated connection, of either side.
type conn struct {
	*tls.Conn
	raw     net.Conn
	peer    Peer
	known   bool // false for join, where the client has no certificate
	once    sync.Once
	onClose func()
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		if c.onClose != nil {
			c.onClose()
		}
	})
	return err
}

// PeerOf tells who is at the other end of a connection from a Mux or a Dialer; false for a joining host.
func PeerOf(nc net.Conn) (Peer, bool) {
	if c, ok := nc.(*conn); ok {
		return c.peer, c.known
	}
	return Peer{}, false
}
