package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

const (
	// politely is how many connections beyond MaxConns are told why they are refused, and may be cancel requests; more are closed unheard.
	politely = 64

	keepIdle, keepInterval, keepCount = 30 * time.Second, 10 * time.Second, 3

	acceptPause, maxAcceptPause = 5 * time.Millisecond, time.Second
)

// listener is one port at work.
type listener struct {
	Listener

	tcp         *net.TCPListener
	dialer      func(ctx context.Context, network, addr string) (net.Conn, error)
	userTimeout time.Duration
	log         *slog.Logger
	roster      *roster
	clients     *clients
	count       counters
}

// run accepts until ctx ends, and returns when all its connections are closed. Only a closed port is an error.
func (l *listener) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var pause time.Duration
	for {
		conn, err := l.tcp.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", l.tcp.Addr(), err)
		case err != nil: // out of file descriptors, most likely: connections that end give some back
			pause = min(max(2*pause, acceptPause), maxAcceptPause)
			l.log.Warn("cannot accept connections for the moment", "error", err, "retry_in", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		l.count.accepted.Add(1)
		open := int(l.count.open.Add(1))
		if open > l.MaxConns+politely {
			l.count.open.Add(-1)
			l.count.refuse(RefusedLimit)
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			defer l.count.open.Add(-1)
			l.serve(ctx, conn, open > l.MaxConns)
		})
	}
}

// serve sees one client through, from its first byte to its last.
func (l *listener) serve(ctx context.Context, conn *net.TCPConn, crowded bool) {
	v := &visit{l: l, ctx: ctx, client: conn, from: conn.RemoteAddr().(*net.TCPAddr).AddrPort()}
	err := l.prepare(conn)
	if err == nil {
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
		err = v.run(crowded)
		stop()
	}
	if err != nil {
		l.log.Debug("connection ended", "client", v.from.String(), "error", err)
	}
	farewell(conn)
}

// prepare makes the kernel notice a peer that is gone.
func (l *listener) prepare(conn *net.TCPConn) error {
	err := conn.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount})
	if err == nil && l.userTimeout > 0 {
		err = setUserTimeout(conn, l.userTimeout)
	}
	if err != nil {
		return fmt.Errorf("set TCP options: %w", err)
	}
	return nil
}

// visit is one client's connection.
type visit struct {
	l      *listener
	ctx    context.Context
	client *net.TCPConn
	from   netip.AddrPort // the client's, or what the PROXY header says
	packet packet         // the last one read, unanswered
}

// past is a deadline that ends whatever is under way.
var past = time.Unix(1, 0)

// until sets a deadline that does not outlive ctx: whoever ends ctx sets it to the past.
func until(ctx context.Context, c *net.TCPConn, t time.Time) {
	_ = c.SetDeadline(t)
	if ctx.Err() != nil {
		_ = c.SetDeadline(past)
	}
}

func (v *visit) run(crowded bool) error {
	until(v.ctx, v.client, time.Now().Add(v.l.StartupTimeout))
	if v.l.ProxyProtocol {
		from, err := readHeader(v.client)
		if err != nil {
			return v.unheard(err)
		}
		if from.IsValid() {
			v.from = from
		}
	}
	mine := v.l.clients.enter(v.from.Addr())
	defer v.l.clients.leave(v.from.Addr())
	if err := v.next(); err != nil {
		return v.unheard(err)
	}
	switch {
	case v.packet.opening == wantCancel:
		return v.cancel()
	case crowded:
		return v.refuse(RefusedLimit, stateTooMany, fmt.Sprintf("too many connections: the proxy takes %d here", v.l.MaxConns), "Raise the listener's limit of connections, or use a connection pool.")
	case !mine:
		return v.refuse(RefusedClientLimit, stateTooMany, fmt.Sprintf("too many connections from %s: the proxy takes %d from one address", v.from.Addr(), v.l.MaxPerClient), "Raise the listener's limit for one client, or use a connection pool.")
	}
	s, server, err := v.attach()
	switch {
	case errors.Is(err, errIsCancel):
		return v.cancel()
	case errors.Is(err, errWaited):
		return errors.Join(err, v.refuse(RefusedNoServer, stateNotNow, err.Error(), "Try again; the cluster's state says why there is none."))
	case errors.Is(err, errClient):
		return v.unheard(err)
	case err != nil:
		return err
	}
	defer s.release()
	v.l.count.active.Add(1)
	defer v.l.count.active.Add(-1)
	err = pump(s.ctx, v.client, server, &v.l.count)
	if errors.Is(err, errDeposed) {
		v.l.count.deposed.Add(1)
	}
	farewell(v.client, server)
	return err
}

// next reads the client's next startup packet.
func (v *visit) next() (err error) {
	until(v.ctx, v.client, time.Now().Add(v.l.StartupTimeout))
	v.packet, err = readPacket(v.client)
	return err
}

// unheard counts why a client never got as far as asking for a session. One that only opens and closes the port is a health check, and one that
// closes between two packets wants encryption or nothing: neither is a refusal.
func (v *visit) unheard(err error) error {
	switch {
	case v.ctx.Err() != nil || errors.Is(err, io.EOF):
	case errors.Is(err, os.ErrDeadlineExceeded):
		v.l.count.refuse(RefusedTimeout)
	case errors.Is(err, errMalformed) || errors.Is(err, errHeader) || errors.Is(err, io.ErrUnexpectedEOF):
		v.l.count.refuse(RefusedMalformed)
	}
	return err
}

// refuse tells a client why, in its own protocol. Encryption is declined on the way, since only the servers can do it: a client that insists on it
// hangs up instead of reading the reason.
func (v *visit) refuse(why Reason, state, message, hint string) error {
	for range 3 { // PostgreSQL takes one request for TLS and one for GSSAPI
		switch v.packet.opening {
		case wantCancel:
			return v.cancel()
		case wantSession:
			v.l.count.refuse(why)
			_, err := v.client.Write(errorResponse(state, message, hint))
			return err
		case wantTLS:
			v.l.count.refuse(why)
			return nil
		case wantEncryption:
			until(v.ctx, v.client, time.Now().Add(v.l.StartupTimeout))
			if _, err := v.client.Write([]byte{'N'}); err != nil {
				return err
			}
			if err := v.next(); err != nil {
				v.l.count.refuse(why)
				return err
			}
		}
	}
	v.l.count.refuse(why)
	return nil
}

// cancel takes a cancel request to every server of the listener, and returns when they have seen to it: the client waits for that.
func (v *visit) cancel() error {
	v.l.count.cancels.Add(1)
	ctx, cancel := context.WithTimeout(v.ctx, v.l.ConnectTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, t := range v.l.roster.list() {
		wg.Go(func() {
			server, err := v.l.connect(ctx, t.Addr)
			if err != nil {
				v.l.log.Debug("cancel request not delivered", "node", t.Name, "error", err)
				return
			}
			defer context.AfterFunc(ctx, func() { _ = server.SetDeadline(past) })()
			if _, err = server.Write(v.packet.raw); err == nil {
				_, _ = io.CopyN(io.Discard, server, 1) // PostgreSQL closes without a word
			}
			_ = server.Close()
		})
	}
	wg.Wait()
	return nil
}

// clients counts the connections of each address.
type clients struct {
	max int
	mu  sync.Mutex
	n   map[netip.Addr]int
}

func newClients(limit int) *clients { return &clients{max: limit, n: map[netip.Addr]int{}} }

// enter counts one in and reports whether the address is within its limit; leave counts it out in any case.
func (c *clients) enter(a netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[a]++
	return c.max == 0 || c.n[a] <= c.max
}

func (c *clients) leave(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[a]--; c.n[a] == 0 {
		delete(c.n, a)
	}
}
