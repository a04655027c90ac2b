package transport

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

var errNoHost = errors.New("no such host")

// fakeWindow bounds what is written but not yet read, in bytes.
const fakeWindow = 64 << 10

// stream is one direction of a connection. All of it is guarded by FakeNet.mu.
type stream struct {
	net      *FakeNet
	from, to string
	wake     *sync.Cond
	segs     []segment // later ones wait behind the first, however fast they were
	size     int
}

// segment is data, or the end of the stream when end is set.
type segment struct {
	data []byte
	end  error
	at   time.Time
}

func newStream(n *FakeNet, from, to string) *stream {
	return &stream{net: n, from: from, to: to, wake: sync.NewCond(&n.mu)}
}

func (s *stream) push(g segment) {
	g.at = time.Now().Add(s.net.latency(s.from, s.to))
	s.segs = append(s.segs, g)
	s.size += len(g.data)
	s.wake.Broadcast()
	if d := time.Until(g.at); d > 0 {
		time.AfterFunc(d, s.wakeUp)
	}
}

func (s *stream) wakeUp() {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	s.wake.Broadcast()
}

// head is the segment that a reader gets now, or nil.
func (s *stream) head() *segment {
	if len(s.segs) == 0 || !s.net.delivers(s.from, s.to) || s.segs[0].at.After(time.Now()) {
		return nil
	}
	return &s.segs[0]
}

// ended reports whether the writer has already ended the stream.
func (s *stream) ended() bool { return len(s.segs) > 0 && s.segs[len(s.segs)-1].end != nil }

// fakeConn is one end of a connection. All of it is guarded by FakeNet.mu.
type fakeConn struct {
	net           *FakeNet
	local, remote fakeAddr
	in, out       *stream
	peer          *fakeConn
	closed        bool
	broken        error // reset by a fault
	read, write   deadline
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(t time.Time, s *stream) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if left := time.Until(t); !t.IsZero() && left > 0 {
		d.timer = time.AfterFunc(left, s.wakeUp)
	}
	s.wake.Broadcast()
}

// Read implements net.Conn.
func (c *fakeConn) Read(b []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		switch g := c.in.head(); {
		case c.closed:
			return 0, c.fail("read", net.ErrClosed)
		case c.broken != nil:
			return 0, c.fail("read", c.broken)
		case c.read.passed():
			return 0, c.fail("read", os.ErrDeadlineExceeded)
		case len(b) == 0:
			return 0, nil
		case g != nil && errors.Is(g.end, io.EOF):
			return 0, io.EOF
		case g != nil && g.end != nil:
			return 0, c.fail("read", g.end)
		case g != nil:
			return c.take(b, g), nil
		}
		c.in.wake.Wait()
	}
}

func (c *fakeConn) take(b []byte, g *segment) int {
	n := copy(b, g.data)
	g.data = g.data[n:]
	if len(g.data) == 0 {
		c.in.segs = c.in.segs[1:]
	}
	c.in.size -= n
	c.in.wake.Broadcast()
	return n
}

// Write implements net.Conn.
func (c *fakeConn) Write(b []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.net.resets > 0 && c.net.rng.Float64() < c.net.resets {
		c.reset()
	}
	n := 0
	for {
		if err := c.writable(); err != nil {
			return n, c.fail("write", err)
		}
		if n == len(b) {
			return n, nil
		}
		if room := fakeWindow - c.out.size; room > 0 {
			k := min(room, len(b)-n)
			c.out.push(segment{data: append([]byte(nil), b[n:n+k]...)})
			n += k
			continue
		}
		c.out.wake.Wait()
	}
}

func (c *fakeConn) writable() error {
	switch g := c.in.head(); {
	case c.closed:
		return net.ErrClosed
	case c.broken != nil:
		return c.broken
	case c.write.passed():
		return os.ErrDeadlineExceeded
	case c.out.ended():
		return syscall.EPIPE
	case g != nil && g.end != nil && !errors.Is(g.end, io.EOF):
		return g.end
	case c.peer.closed && c.net.carries(c.out.from, c.out.to) && c.net.carries(c.out.to, c.out.from):
		return syscall.EPIPE // the kernel there answers data with a reset
	}
	return nil
}

// Close implements net.Conn. What was written still arrives, then the end of the stream.
func (c *fakeConn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.finish(io.EOF)
	return nil
}

// CloseWrite ends the outgoing direction only.
func (c *fakeConn) CloseWrite() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.end(io.EOF)
	return nil
}

func (c *fakeConn) end(how error) {
	if !c.out.ended() {
		c.out.push(segment{end: how})
	}
}

// finish closes this end; the other one learns it in its turn.
func (c *fakeConn) finish(how error) {
	if c.closed {
		return
	}
	c.end(how)
	c.closed = true
	c.forget()
}

// reset breaks both ends at once.
func (c *fakeConn) reset() {
	for _, e := range []*fakeConn{c, c.peer} {
		e.broken = syscall.ECONNRESET
		e.forget()
	}
}

func (c *fakeConn) forget() {
	delete(c.net.conns, c)
	for _, d := range []*deadline{&c.read, &c.write} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
	c.in.wake.Broadcast()
	c.out.wake.Broadcast()
}

func (c *fakeConn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// LocalAddr implements net.Conn.
func (c *fakeConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *fakeConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *fakeConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *fakeConn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.read, t, c.in) }

// SetWriteDeadline implements net.Conn.
func (c *fakeConn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.write, t, c.out) }

func (c *fakeConn) setDeadline(d *deadline, t time.Time, s *stream) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return c.fail("set deadline", net.ErrClosed)
	}
	d.set(t, s)
	return nil
}
