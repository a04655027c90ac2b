package transport

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

type muxBed struct {
	net    *FakeNet
	mux    *Mux
	dialer *Dialer
	logs   logs
}

func newMuxBed(t testing.TB, cfg ServerConfig) *muxBed {
	b := &muxBed{net: NewFakeNet()}
	ca := newCA(t, clusterA)
	cfg.Identity, cfg.Log = identity(t, ca, nodeS, 1), b.logs.logger()
	b.mux = listen(t, b.net.Host("n1"), addrS, cfg)
	b.dialer = &Dialer{Network: b.net.Host("n2"), Identity: identity(t, ca, nodeC, 1)}
	return b
}

// works dials a kind whose listener echoes, and reports how long it took.
func (b *muxBed) works(t testing.TB, k Kind) time.Duration {
	t.Helper()
	start := time.Now()
	c, err := b.dialer.Dial(t.Context(), k, addrS, nodeS)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ping(t, c)
	return time.Since(start)
}

func TestMuxSeparatesKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMuxBed(t, ServerConfig{})
		for _, k := range []Kind{KindRaft, KindRPC, KindGossip} {
			go func() {
				for {
					c, err := b.mux.Listener(k).Accept()
					if err != nil {
						return
					}
					if p, ok := PeerOf(c); !ok || p != (Peer{clusterA, nodeC}) {
						t.Errorf("server sees %v, %v", p, ok)
					}
					_, _ = c.Write([]byte(k))
					c.Close()
				}
			}()
		}
		for range 3 {
			for _, k := range []Kind{KindGossip, KindRaft, KindRPC} {
				c, err := b.dialer.Dial(t.Context(), k, addrS, nodeS)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(c); string(got) != string(k) || err != nil {
					t.Fatalf("%s answered %q, %v", k, got, err)
				}
				c.Close()
			}
		}
		if b.logs.String() != "" {
			t.Fatalf("steady state logs %q", b.logs.String())
		}
	})
}

func TestMuxSlowHandshakesAreCutAndBlockNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMuxBed(t, ServerConfig{})
		go echo(b.mux.Listener(KindRaft))
		var slow []net.Conn
		for i := range 100 {
			c, err := b.net.Host("n3").Dial(t.Context(), addrS)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if i%2 == 0 { // half of them drip the beginning of a real hello
				mustWrite(t, c, "\x16\x03\x01")
			}
			slow = append(slow, c)
		}
		start := time.Now()
		if d := b.works(t, KindRaft); d != 0 {
			t.Fatalf("an honest peer waited %v", d)
		}
		for _, c := range slow {
			if _, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Fatalf("silent ones were cut after %v", d)
		}
	})
}

func TestMuxHandshakesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMuxBed(t, ServerConfig{MaxHandshakes: 4})
		go echo(b.mux.Listener(KindRaft))
		for range 50 {
			c, err := b.net.Host("n3").Dial(t.Context(), addrS)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			synctest.Wait()
			b.mux.mu.Lock()
			n := b.mux.pending.Len()
			b.mux.mu.Unlock()
			if n > 4 {
				t.Fatalf("%d handshakes at once", n)
			}
		}
		if d := b.works(t, KindRaft); d != 0 {
			t.Fatalf("an honest peer waited %v", d)
		}
	})
}

func TestMuxConnectionNobodyAcceptsIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMuxBed(t, ServerConfig{})
		go echo(b.mux.Listener(KindRaft))
		c, err := b.dialer.Dial(t.Context(), KindGossip, addrS, nodeS)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b.works(t, KindRaft)
		start := time.Now()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(start) != 5*time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
		if !strings.Contains(b.logs.String(), "nobody accepts this kind") {
			t.Fatalf("log %q", b.logs.String())
		}
		b.mux.Listener(KindGossip).Close() // then it is refused at once
		c, err = b.dialer.Dial(t.Context(), KindGossip, addrS, nodeS)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		start = time.Now()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(start) != 0 {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
		b.works(t, KindRaft)
	})
}

func TestMuxCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMuxBed(t, ServerConfig{})
		l := b.mux.Listener(KindRaft)
		got := make(chan net.Conn, 1)
		go func() { c, _ := l.Accept(); got <- c }()
		c, err := b.dialer.Dial(t.Context(), KindRaft, addrS, nodeS)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		server := <-got
		silent, err := b.net.Host("n3").Dial(t.Context(), addrS)
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		// Neither a dead link nor a full buffer may hold up Close.
		b.net.Isolate("n2")
		_ = server.SetWriteDeadline(time.Now().Add(time.Millisecond))
		_, _ = server.Write(make([]byte, 1<<20))
		start := time.Now()
		if err := b.mux.Close(); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 0 {
			t.Fatalf("Close took %v", d)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("accept after Close: %v", err)
		}
		if _, err := server.Read(make([]byte, 1)); err == nil {
			t.Fatal("an accepted connection lives on")
		}
		if _, err := silent.Read(make([]byte, 1)); err == nil {
			t.Fatal("a handshake lives on")
		}
		if err := b.mux.Close(); err != nil {
			t.Fatalf("second Close: %v", err)
		}
		server.Close()
		b.net.HealAll()
	})
}

func TestMuxForgetsClosedConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMuxBed(t, ServerConfig{})
		go echo(b.mux.Listener(KindRaft))
		for range 10 {
			b.works(t, KindRaft)
		}
		synctest.Wait()
		b.mux.mu.Lock()
		defer b.mux.mu.Unlock()
		if len(b.mux.live) != 0 || b.mux.pending.Len() != 0 {
			t.Fatalf("%d connections, %d handshakes left", len(b.mux.live), b.mux.pending.Len())
		}
	})
}

func TestMuxLogsARefusalOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMuxBed(t, ServerConfig{})
		stranger := &Dialer{Network: b.net.Host("n9"), Identity: identity(t, newCA(t, clusterB), nodeC, 1)}
		for range 100 {
			_, _ = stranger.Dial(t.Context(), KindRaft, addrS, "")
			time.Sleep(time.Second)
		}
		if n := strings.Count(b.logs.String(), "handshake refused"); n != 2 {
			t.Fatalf("%d lines in 100 s", n)
		}
		if !strings.Contains(b.logs.String(), "remote=n9") {
			t.Fatalf("log %q does not name the host", b.logs.String())
		}
	})
}

func TestMuxNeedsIdentityAndPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMuxBed(t, ServerConfig{})
		if _, err := Listen(b.net.Host("n1"), "n1:7401", ServerConfig{}); err == nil {
			t.Fatal("a port without identity opened")
		}
		if _, err := Listen(b.net.Host("n1"), addrS, ServerConfig{Identity: b.dialer.Identity}); !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatalf("got %v", err)
		}
	})
}

// failing gives a few passing errors before each connection.
type failing struct {
	net.Listener
	left int
}

func (f *failing) Accept() (net.Conn, error) {
	if f.left > 0 {
		f.left--
		return nil, syscall.EMFILE
	}
	return f.Listener.Accept()
}

type failingNet struct{ Network }

func (f failingNet) Listen(addr string) (net.Listener, error) {
	l, err := f.Network.Listen(addr)
	return &failing{Listener: l, left: 5}, err
}

func TestMuxOutlivesAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, ca := NewFakeNet(), newCA(t, clusterA)
		m := listen(t, failingNet{n.Host("n1")}, addrS, ServerConfig{Identity: identity(t, ca, nodeS, 1)})
		go echo(m.Listener(KindRaft))
		b := &muxBed{net: n, mux: m, dialer: &Dialer{Network: n.Host("n2"), Identity: identity(t, ca, nodeC, 1)}}
		if d := b.works(t, KindRaft); d > time.Second {
			t.Fatalf("came back after %v", d)
		}
	})
}

func FuzzMuxGarbage(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
	f.Add([]byte("\x15\x03\x03\x00\x02\x02\x28"))
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 70_000))
	f.Fuzz(func(t *testing.T, garbage []byte) {
		if len(garbage) > 1<<20 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			b := newMuxBed(t, ServerConfig{})
			go echo(b.mux.Listener(KindRaft))
			c, err := b.net.Host("n3").Dial(t.Context(), addrS)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			start := time.Now()
			_, _ = c.Write(garbage)
			if d := b.works(t, KindRaft); d != 0 {
				t.Fatalf("an honest peer waited %v", d)
			}
			_, _ = io.Copy(io.Discard, c)
			if d := time.Since(start); d > 5*time.Second {
				t.Fatalf("the garbage held its connection for %v", d)
			}
		})
	})
}

// Garbage inside an authenticated connection must not disturb the RPC server either.
func TestRPCGarbageAfterHandshake(t *testing.T) {
	inRPCBed(t, func(t *testing.T, b *rpcBed) {
		for _, garbage := range []string{"\x00\x01\x02\r\n\r\n", "POST / HTTP/9.9\r\n\r\n", strings.Repeat("x", 100_000), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"} {
			c, err := b.client.http.DialContext(t.Context(), "tcp", poolKey(addrS, nodeS))
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = c.Write([]byte(garbage))
			got, _ := io.ReadAll(c)
			if len(got) > 0 && !bytes.HasPrefix(got, []byte("HTTP/1.1 4")) && !bytes.HasPrefix(got, []byte("HTTP/1.1 505")) {
				t.Fatalf("%.20q was answered by %q", garbage, got)
			}
			c.Close()
		}
	})
}
