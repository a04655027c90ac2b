package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"matriarch/fsm"
)

const patience = 10 * time.Second

// source is a Source that tests set.
type source struct {
	mu      sync.Mutex
	targets map[Kind][]Target
	changed chan struct{}
}

func newSource() *source {
	return &source{targets: map[Kind][]Target{}, changed: make(chan struct{})}
}

func (s *source) set(k Kind, targets ...Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targets[k] = targets
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *source) Targets(k Kind) []Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.targets[k])
}

func (s *source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// backend is a server that lets everybody in and sends everything back.
type backend struct {
	t    *testing.T
	name string
	l    net.Listener
	wg   sync.WaitGroup

	mu       sync.Mutex
	live     map[net.Conn]bool
	sessions int
	cancels  [][]byte
	refusals []string      // SQLSTATEs for the next sessions
	frozen   bool          // takes connections and says nothing
	deaf     chan struct{} // sessions read nothing until it is closed
}

func newBackend(t *testing.T, name string) *backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{t: t, name: name, l: l, live: map[net.Conn]bool{}}
	b.wg.Go(b.accept)
	t.Cleanup(b.stop)
	return b
}

func (b *backend) stop() {
	b.l.Close()
	b.mu.Lock()
	for c := range b.live {
		c.Close()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

func (b *backend) target(epoch uint64) Target {
	return Target{Node: fsm.NodeID(b.name), Name: b.name, Addr: b.l.Addr().String(), Epoch: fsm.Epoch{Inc: 1, N: epoch}}
}

func (b *backend) accept() {
	for {
		c, err := b.l.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.live[c] = true
		b.mu.Unlock()
		b.wg.Go(func() {
			b.serve(c)
			c.Close()
			b.mu.Lock()
			delete(b.live, c)
			b.mu.Unlock()
		})
	}
}

func (b *backend) serve(c net.Conn) {
	b.mu.Lock()
	frozen, deaf := b.frozen, b.deaf
	b.mu.Unlock()
	if frozen {
		io.Copy(io.Discard, c)
		return
	}
	for {
		p, err := readPacket(c)
		if err != nil {
			return
		}
		switch p.opening {
		case wantEncryption:
			c.Write([]byte{'N'})
			continue
		case wantCancel:
			b.mu.Lock()
			b.cancels = append(b.cancels, p.raw)
			b.mu.Unlock()
			return
		}
		b.mu.Lock()
		refusal := ""
		if len(b.refusals) > 0 {
			refusal, b.refusals = b.refusals[0], b.refusals[1:]
		} else {
			b.sessions++
		}
		b.mu.Unlock()
		if refusal != "" {
			c.Write(errorResponse(refusal, "the fake refuses with "+refusal, ""))
			return
		}
		c.Write(authOK)
		io.WriteString(c, b.name+"\n")
		if deaf != nil {
			<-deaf
		}
		io.Copy(c, c)
		return
	}
}

func (b *backend) count() (live, sessions, cancels int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.live), b.sessions, len(b.cancels)
}

// behave sets frozen and deaf for connections to come.
func (b *backend) behave(frozen bool, deaf chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.frozen, b.deaf = frozen, deaf
}

func (b *backend) refuse(states ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refusals = states
}

var (
	authOK     = []byte{'R', 0, 0, 0, 8, 0, 0, 0, 0}
	sslRequest = []byte{0, 0, 0, 8, 4, 210, 22, 47}
)

func startupPacket() []byte {
	body := "user\x00me\x00database\x00app\x00\x00"
	out := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(binary.BigEndian.AppendUint32(out, 3<<16), body...)
}

func cancelPacket(pid uint32) []byte {
	out := binary.BigEndian.AppendUint32(nil, 16)
	out = binary.BigEndian.AppendUint32(out, codeCancel)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(out, pid), 0xdecaf)
}

// start runs a proxy until the test ends.
func start(t *testing.T, src Source, listeners ...Listener) *Proxy {
	t.Helper()
	for i := range listeners {
		listeners[i].Addr = "127.0.0.1:0"
	}
	p, err := New(Config{Listeners: listeners, Source: src, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return p
}

// client is one connection to a listener.
type client struct {
	*net.TCPConn
	t *testing.T
}

func dial(t *testing.T, p *Proxy, i int) client {
	t.Helper()
	c, err := net.Dial("tcp", p.listeners[i].tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return client{c.(*net.TCPConn), t}
}

func (c client) send(b []byte) client {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
	return c
}

func (c client) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

// session opens one and returns the name of the server it got, or the SQLSTATE of its refusal.
func (c client) session() string {
	c.t.Helper()
	return c.send(startupPacket()).outcome()
}

func (c client) outcome() string {
	c.t.Helper()
	a, err := readAnswer(c)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	if a.state != "" {
		return a.state
	}
	c.read(len(authOK) - answerHeader)
	var name strings.Builder
	for b := c.read(1); b[0] != '\n'; b = c.read(1) {
		name.Write(b)
	}
	return name.String()
}

// echo shows that the session lives.
func (c client) echo(text string) {
	c.t.Helper()
	if got := c.send([]byte(text)).read(len(text)); !bytes.Equal(got, []byte(text)) {
		c.t.Fatalf("sent %q, got %q back", text, got)
	}
}

// ended waits for the end of the connection, which must not be a reset.
func (c client) ended() {
	c.t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil {
		c.t.Fatalf("want the connection finished in order, got %v", err)
	}
}

// eventually waits until ok, which has no event to wait for.
func eventually(t interface {
	Helper()
	Fatalf(string, ...any)
}, what string, ok func() bool,
) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
