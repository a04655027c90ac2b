package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestFollowsTheRole(t *testing.T) {
	src, a, b := newSource(), newBackend(t, "a"), newBackend(t, "b")
	src.set(Coordinator, a.target(1))
	src.set(Standby, b.target(0))
	p := start(t, src, Listener{Kind: Coordinator}, Listener{Kind: Standby})
	first, reader := dial(t, p, 0), dial(t, p, 1)
	if got := first.session(); got != "a" {
		t.Fatalf("coordinator: got %s", got)
	}
	if got := reader.session(); got != "b" {
		t.Fatalf("standby: got %s", got)
	}
	first.echo("hello")

	src.set(Coordinator, b.target(2))
	first.ended()
	eventually(t, "a has no session", func() bool { n, _, _ := a.count(); return n == 0 })
	reader.echo("still there")
	if got := dial(t, p, 0).session(); got != "b" {
		t.Fatalf("after the change: got %s", got)
	}
	s := p.Stats()
	if s[0].Deposed != 1 || s[1].Deposed != 0 || s[0].Accepted != 2 || !slices.Equal(s[0].Servers, []ServerStats{{Name: "b", Addr: b.target(2).Addr, Sessions: 1}}) {
		t.Errorf("stats: %+v", s)
	}
}

func TestAnotherEpochEndsTheSession(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	src.set(Coordinator, a.target(1))
	p := start(t, src, Listener{Kind: Coordinator})
	c := dial(t, p, 0)
	c.session()
	src.set(Coordinator, a.target(2))
	c.ended()
	if got := dial(t, p, 0).session(); got != "a" {
		t.Fatalf("got %s", got)
	}
}

// A deposed server's sessions end in order even while bytes are under way in both directions.
func TestDeposedMidStream(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	src.set(Coordinator, a.target(1))
	p := start(t, src, Listener{Kind: Coordinator})
	c := dial(t, p, 0)
	c.session()
	var wg sync.WaitGroup
	wg.Go(func() {
		for b := make([]byte, 1000); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(c, b); err != nil {
				c.CloseWrite()
				return
			}
		}
	})
	eventually(t, "bytes flow", func() bool { return p.Stats()[0].ToClient > 10_000 })
	src.set(Coordinator)
	wg.Wait()
	c.ended()
	eventually(t, "the server is free", func() bool { n, _, _ := a.count(); return n == 0 && p.Stats()[0].Active == 0 })
}

// A client whose bytes nobody reads any more still sees an ordinary end: a reset would overtake what was sent to it.
func TestDeposedWithBytesUnread(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	deaf := make(chan struct{})
	a.behave(false, deaf)
	src.set(Coordinator, a.target(1))
	p := start(t, src, Listener{Kind: Coordinator})
	c := dial(t, p, 0)
	c.session()
	c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	for b := make([]byte, 1<<20); ; {
		if _, err := c.Write(b); err != nil {
			break // all buffers are full
		}
	}
	src.set(Coordinator)
	c.ended()
	time.Sleep(100 * time.Millisecond) // a reset would come right behind the end
	if got := tcpState(t, c.TCPConn); got != unix.BPF_TCP_CLOSE_WAIT {
		t.Errorf("the client's socket is in state %d: it was reset", got)
	}
	close(deaf)
	eventually(t, "the server is free", func() bool { n, _, _ := a.count(); return n == 0 })
}

func tcpState(t *testing.T, c *net.TCPConn) (state uint8) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Fatal(err)
		}
		state = info.State
	})
	return state
}

// The startup, too, ends with the role: no server is held for a client that takes its time, and no client for a server that does.
func TestDeposedDuringTheStartup(t *testing.T) {
	src, a, b := newSource(), newBackend(t, "a"), newBackend(t, "b")
	b.behave(true, nil)
	src.set(Coordinator, a.target(1))
	p := start(t, src, Listener{Kind: Coordinator, StartupTimeout: time.Hour, ConnectTimeout: time.Hour, WaitLimit: time.Hour})
	slow := dial(t, p, 0).send(sslRequest)
	slow.read(1)
	src.set(Coordinator, b.target(2))
	eventually(t, "a has no connection", func() bool { n, _, _ := a.count(); return n == 0 })
	slow.send(startupPacket())
	eventually(t, "b has the connection", func() bool { n, _, _ := b.count(); return n == 1 })
	src.set(Coordinator, a.target(3))
	if got := slow.outcome(); got != "a" {
		t.Fatalf("got %s", got)
	}
	if n := p.Stats()[0].Deposed; n != 0 {
		t.Errorf("%d sessions counted as ended: the client noticed nothing", n)
	}
}

func TestDrainingKeepsItsSessions(t *testing.T) {
	src, a, b := newSource(), newBackend(t, "a"), newBackend(t, "b")
	src.set(Standby, a.target(0))
	p := start(t, src, Listener{Kind: Standby})
	c := dial(t, p, 0)
	c.session()
	draining := a.target(0)
	draining.Draining = true
	src.set(Standby, draining, b.target(0))
	eventually(t, "the change arrived", func() bool { return len(p.listeners[0].roster.list()) == 2 })
	for range 3 {
		if got := dial(t, p, 0).session(); got != "b" {
			t.Fatalf("a draining server got a session")
		}
	}
	c.echo("still there")
}

func TestWaitingClientsGetThrough(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	p := start(t, src, Listener{Kind: Coordinator})
	const n = 20
	var clients []client
	for i := range n {
		c := dial(t, p, 0)
		if i%2 == 0 { // what libpq does first
			c.send(sslRequest)
		} else {
			c.send(startupPacket())
		}
		clients = append(clients, c)
	}
	eventually(t, "all wait", func() bool { return p.Stats()[0].Waiting == n })
	src.set(Coordinator, a.target(1))
	for i, c := range clients {
		if i%2 == 0 {
			if got := c.read(1); got[0] != 'N' {
				t.Fatalf("the server's word on encryption: %q", got)
			}
			c.send(startupPacket())
		}
		if got := c.outcome(); got != "a" {
			t.Fatalf("got %s", got)
		}
	}
	if s := p.Stats()[0]; s.Waiting != 0 || s.Active != n || len(s.Refused) != 0 {
		t.Errorf("stats: %+v", s)
	}
}

func TestWaitLimit(t *testing.T) {
	const limit, unhurried = 50 * time.Millisecond, 2 * time.Second // the latter is for what needs a try, however slow the machine
	stopped := newBackend(t, "stopped")
	stopped.stop()
	for name, tc := range map[string]struct {
		targets []Target
		ssl     bool
		limit   time.Duration
		says    string
	}{
		"nobody":              {nil, false, limit, "waited 50ms for the coordinator's primary, there is none"},
		"nobody, SSL request": {nil, true, limit, "there is none"},
		"does not listen":     {[]Target{stopped.target(1)}, false, unhurried, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			src.set(Coordinator, tc.targets...)
			p := start(t, src, Listener{Kind: Coordinator, WaitLimit: tc.limit})
			begin, c := time.Now(), dial(t, p, 0)
			if tc.ssl {
				if got := c.send(sslRequest).read(1); got[0] != 'N' {
					t.Fatalf("got %q", got)
				}
			}
			a, err := readAnswer(c.send(startupPacket()))
			if err != nil {
				t.Fatal(err)
			}
			if a.state != "57P03" || !strings.Contains(a.message, tc.says) {
				t.Errorf("got %s %q", a.state, a.message)
			}
			c.ended()
			if d := time.Since(begin); d < tc.limit {
				t.Errorf("gave up after %s", d)
			}
			if diff := cmp.Diff(map[Reason]uint64{RefusedNoServer: 1}, p.Stats()[0].Refused); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestServersThatAreNotReady(t *testing.T) {
	for name, tc := range map[string]struct {
		refusals []string
		settled  bool
		want     string
	}{
		"stopping or starting":           {[]string{"57P03", "57P03"}, true, "a"},
		"just promoted, hba not open":    {[]string{"28000"}, false, "a"},
		"hba turns the client away":      {[]string{"28000"}, true, "28000"},
		"any other refusal is passed on": {[]string{"3D000"}, false, "3D000"},
	} {
		t.Run(name, func(t *testing.T) {
			src, a := newSource(), newBackend(t, "a")
			a.refuse(tc.refusals...)
			p := start(t, src, Listener{Kind: Worker})
			since := time.Now().Add(time.Hour) // no stall settles it
			if tc.settled {
				since = time.Now().Add(-settling)
			}
			p.listeners[0].roster.mu.Lock()
			p.listeners[0].roster.since[a.target(1).pair()] = since
			p.listeners[0].roster.mu.Unlock()
			src.set(Worker, a.target(1))
			if got := dial(t, p, 0).session(); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestNextServerWhenOneIsAway(t *testing.T) {
	src, gone, b := newSource(), newBackend(t, "gone"), newBackend(t, "b")
	gone.stop()
	src.set(Worker, gone.target(1), b.target(1))
	p := start(t, src, Listener{Kind: Worker})
	for range 4 {
		if got := dial(t, p, 0).session(); got != "b" {
			t.Fatalf("got %s", got)
		}
	}
}

// A server whose host is gone without a word does not hold up the client once another has the role.
func TestDialEndsWithTheRole(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	dead := Target{Node: "dead", Name: "dead", Addr: "192.0.2.1:5432"}
	src.set(Coordinator, dead)
	dialling := make(chan struct{}, 1)
	p, err := New(Config{
		Listeners: []Listener{{Kind: Coordinator, Addr: "127.0.0.1:0", ConnectTimeout: time.Hour, WaitLimit: time.Hour}}, Source: src, Log: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == dead.Addr {
				dialling <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	c := dial(t, p, 0).send(startupPacket())
	<-dialling
	src.set(Coordinator, a.target(2))
	if got := c.outcome(); got != "a" {
		t.Fatalf("got %s", got)
	}
}

func TestSpread(t *testing.T) {
	src, want := newSource(), map[string]int{}
	var targets []Target
	for i := range 3 {
		b := newBackend(t, "w"+strconv.Itoa(i))
		targets = append(targets, b.target(1))
		want[b.name] = 4
	}
	src.set(Worker, targets...)
	p := start(t, src, Listener{Kind: Worker})
	got := map[string]int{}
	for range 12 {
		got[dial(t, p, 0).session()]++
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCancelReachesEveryServer(t *testing.T) {
	src, a, b, other := newSource(), newBackend(t, "a"), newBackend(t, "b"), newBackend(t, "other")
	draining := b.target(1)
	draining.Draining = true
	src.set(Worker, a.target(1), draining)
	src.set(Coordinator, other.target(1))
	p := start(t, src, Listener{Kind: Worker}, Listener{Kind: Coordinator})
	dial(t, p, 0).send(cancelPacket(7)).ended()
	c := dial(t, p, 0).send(sslRequest) // libpq 17 with sslmode=prefer
	c.read(1)
	c.send(cancelPacket(8)).ended()
	for _, s := range []*backend{a, b} {
		s.mu.Lock()
		if diff := cmp.Diff([][]byte{cancelPacket(7), cancelPacket(8)}, s.cancels); diff != "" {
			t.Errorf("%s: %s", s.name, diff)
		}
		s.mu.Unlock()
	}
	if _, _, n := other.count(); n != 0 {
		t.Error("a server of another kind got a cancel request")
	}
	if n := p.Stats()[0].Cancels; n != 2 {
		t.Errorf("%d counted", n)
	}
}

func TestLimits(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	src.set(Coordinator, a.target(1))
	p := start(t, src, Listener{Kind: Coordinator, MaxConns: 2})
	held := []client{dial(t, p, 0), dial(t, p, 0)}
	for _, c := range held {
		c.session()
	}
	third := dial(t, p, 0)
	if got := third.session(); got != "53300" {
		t.Fatalf("got %s", got)
	}
	third.ended()
	dial(t, p, 0).send(cancelPacket(7)).ended()
	if _, _, n := a.count(); n != 1 {
		t.Error("a full listener did not pass a cancel request on")
	}
	held[0].Close()
	eventually(t, "a place is free", func() bool { return p.listeners[0].count.open.Load() < 2 })
	if got := dial(t, p, 0).session(); got != "a" {
		t.Fatalf("got %s", got)
	}
	if diff := cmp.Diff(map[Reason]uint64{RefusedLimit: 1}, p.Stats()[0].Refused); diff != "" {
		t.Error(diff)
	}
}

func TestFarTooManyConnections(t *testing.T) {
	p := start(t, newSource(), Listener{Kind: Coordinator, MaxConns: 1})
	for range 1 + politely {
		dial(t, p, 0)
	}
	dial(t, p, 0).ended() // without a word, and without one of its own
	if n := p.Stats()[0].Refused[RefusedLimit]; n != 1 {
		t.Errorf("%d counted", n)
	}
}

func TestClientLimitGoesByTheProxyHeader(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	src.set(Coordinator, a.target(1))
	p := start(t, src, Listener{Kind: Coordinator, MaxPerClient: 1, ProxyProtocol: true})
	session := func(addr string) (client, string) {
		c := dial(t, p, 0).send(header(0x21, 0x11, tcp4(addr)))
		return c, c.session()
	}
	first, got := session("198.51.100.1")
	if got != "a" {
		t.Fatalf("got %s", got)
	}
	if _, got := session("198.51.100.2"); got != "a" {
		t.Fatalf("another address: got %s", got)
	}
	if _, got := session("198.51.100.1"); got != "53300" {
		t.Fatalf("the same address: got %s", got)
	}
	first.Close()
	eventually(t, "its place is free", func() bool { return p.Stats()[0].Active == 1 })
	eventually(t, "the address may come again", func() bool { _, got := session("198.51.100.1"); return got == "a" })

	dial(t, p, 0).send(startupPacket()).ended()
	if n := p.Stats()[0].Refused[RefusedMalformed]; n != 1 {
		t.Errorf("a connection without a header: %d counted as malformed", n)
	}
}

func TestSilentAndBrokenClients(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	src.set(Coordinator, a.target(1))
	p := start(t, src, Listener{Kind: Coordinator, StartupTimeout: 2 * time.Second})
	silent, check := dial(t, p, 0), dial(t, p, 0)
	check.Close()
	bad := []string{
		"GET / HTTP/1.0\r\n\r\n", "\x00\xff\x17\x03\x03\x80\x81\xfe" + strings.Repeat("\xa5", 64), "\x00\x00\x27\x11\x00\x03\x00\x00" + strings.Repeat("x", 10_000),
		"\x7f\xff\xff\xff\x00\x03\x00\x00",
	}
	for _, b := range bad {
		dial(t, p, 0).send([]byte(b)).ended()
	}
	c := dial(t, p, 0)
	if got := c.session(); got != "a" { // while another says nothing
		t.Fatalf("got %s", got)
	}
	silent.ended()
	eventually(t, "counted", func() bool {
		return cmp.Equal(map[Reason]uint64{RefusedTimeout: 1, RefusedMalformed: uint64(len(bad))}, p.Stats()[0].Refused)
	})
	c.echo("no timeout after the startup")
	if _, n, _ := a.count(); n != 1 {
		t.Errorf("%d sessions on the server", n)
	}
}

func TestHangupWhileWaitingFreesThePlace(t *testing.T) {
	p := start(t, newSource(), Listener{Kind: Coordinator, WaitLimit: time.Hour})
	c := dial(t, p, 0).send(startupPacket())
	eventually(t, "it waits", func() bool { return p.Stats()[0].Waiting == 1 })
	c.Close()
	eventually(t, "its place is free", func() bool { return p.Stats()[0].Waiting == 0 && p.listeners[0].count.open.Load() == 0 })
}

func TestHalfClose(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	src.set(Coordinator, a.target(1))
	p := start(t, src, Listener{Kind: Coordinator})
	c := dial(t, p, 0)
	c.session()
	c.send([]byte("last words"))
	c.CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || string(rest) != "last words" {
		t.Errorf("got %q, %v", rest, err)
	}
}

func TestServerThatClosesEndsTheSession(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	src.set(Coordinator, a.target(1))
	p := start(t, src, Listener{Kind: Coordinator})
	c := dial(t, p, 0)
	c.session()
	a.stop()
	c.ended() // the client has not closed its side, and its place is free all the same
	eventually(t, "its place is free", func() bool { return p.listeners[0].count.open.Load() == 0 })
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := Config{Source: newSource(), Log: slog.New(slog.DiscardHandler), Listeners: []Listener{
		{Kind: Worker, Addr: "127.0.0.1:0"}, {Kind: Coordinator, Addr: l.Addr().String(), Setting: "proxy.coordinator.listen"},
	}}
	_, err = New(cfg)
	if err == nil || !strings.Contains(err.Error(), "proxy.coordinator.listen") || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
	cfg.Listeners = []Listener{{Kind: "leader", Addr: "127.0.0.1:0"}}
	if _, err = New(cfg); err == nil || !strings.Contains(err.Error(), `"leader"`) {
		t.Errorf("got %v", err)
	}
}

// Clients in every stage, then the end: nothing is left.
func TestRunLeavesNothing(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	src.set(Coordinator, a.target(1))
	before := runtime.NumGoroutine()
	p, err := New(Config{Source: src, Log: slog.New(slog.DiscardHandler), Listeners: []Listener{
		{Kind: Coordinator, Addr: "127.0.0.1:0"}, {Kind: Worker, Addr: "127.0.0.1:0", WaitLimit: time.Hour, StartupTimeout: time.Hour},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	var clients []client
	for range 5 {
		c := dial(t, p, 0)
		c.session()
		clients = append(clients, c, dial(t, p, 1), dial(t, p, 1).send(startupPacket()), dial(t, p, 1).send(sslRequest))
	}
	eventually(t, "they wait", func() bool { return p.Stats()[1].Waiting == 10 })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		c.ended()
	}
	if _, err := net.Dial("tcp", p.Stats()[0].Addr); err == nil {
		t.Error("the port is still open")
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

// The proxy's share of a transfer passes through no read or write call: /proc counts those, and not splice.
func TestTheKernelCopies(t *testing.T) {
	src, a := newSource(), newBackend(t, "a")
	src.set(Coordinator, a.target(1))
	p := start(t, src, Listener{Kind: Coordinator})
	c := dial(t, p, 0)
	c.session()
	c.SetDeadline(time.Now().Add(time.Minute)) // so much takes longer than patience on a busy machine
	const size = 64 << 20
	before := readCalls(t)
	go func() {
		b := make([]byte, 64<<10)
		for range size / len(b) {
			c.Write(b)
		}
		c.CloseWrite()
	}()
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != size {
		t.Fatalf("%d bytes back, %v", n, err)
	}
	// This client and the fake server, whose echo the kernel copies too, are in the same process: the client reads every byte once.
	if read := readCalls(t) - before; read > size+size/4 {
		t.Errorf("%d MiB went through read calls for %d MiB received", read>>20, size>>20)
	}
	if s := p.Stats()[0]; s.ToServer != size || s.ToClient < size {
		t.Errorf("counted %d and %d bytes", s.ToServer, s.ToClient)
	}
}

func readCalls(t *testing.T) (n int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip(err)
	}
	if _, err := fmt.Sscanf(string(b), "rchar: %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}
