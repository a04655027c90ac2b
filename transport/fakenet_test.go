package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// pair connects n1 to n2 and returns both ends.
func pair(t *testing.T, n *FakeNet) (client, server net.Conn) {
	t.Helper()
	l, err := n.Host("n2:1").Listen("n2:1")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = n.Host("n1").Dial(t.Context(), "n2:1")
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

func mustWrite(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func wantRead(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b, err, want)
	}
}

func wantSilence(t *testing.T, c net.Conn, d time.Duration) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	n, err := c.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != d {
		t.Fatalf("read %d bytes, %v after %v; want a timeout after %v", n, err, time.Since(start), d)
	}
	if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		t.Fatalf("%v is no timeout for callers", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
}

func TestFakeNetCutHoldsAndHealDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		c, s := pair(t, n)
		n.Cut("n1", "n2:7400")
		mustWrite(t, c, "one ")
		mustWrite(t, s, "back") // the other direction still works
		wantRead(t, c, "back")
		wantSilence(t, s, time.Second)
		mustWrite(t, c, "two")
		time.AfterFunc(time.Minute, func() { n.Heal("n1", "n2") })
		start := time.Now()
		wantRead(t, s, "one two")
		if d := time.Since(start); d != time.Minute {
			t.Fatalf("delivered after %v, want at the healing", d)
		}
	})
}

func TestFakeNetCutWriterBlocksUntilDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		c, s := pair(t, n)
		n.Isolate("n2")
		if err := c.SetWriteDeadline(time.Now().Add(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		k, err := c.Write(make([]byte, 1<<20))
		if k != fakeWindow || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Fatalf("wrote %d, %v after %v", k, err, time.Since(start))
		}
		n.HealAll()
		if got, err := io.ReadFull(s, make([]byte, fakeWindow)); err != nil {
			t.Fatalf("read %d of what was held: %v", got, err)
		}
	})
}

func TestFakeNetWriterBlockedByCutAndClosedPeerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		c, s := pair(t, n)
		n.Isolate("n2")
		s.Close()
		time.AfterFunc(time.Minute, n.HealAll)
		if _, err := c.Write(make([]byte, 1<<20)); !errors.Is(err, syscall.EPIPE) {
			t.Fatalf("got %v, want EPIPE once the peer can answer", err)
		}
	})
}

func TestFakeNetDelayKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		n.SetDefaultDelay(10*time.Millisecond, 0)
		n.SetDelay("n1", "n2", 300*time.Millisecond)
		start := time.Now()
		c, s := pair(t, n)
		if d := time.Since(start); d != 310*time.Millisecond {
			t.Fatalf("connected after %v, want one round trip", d)
		}
		start = time.Now()
		mustWrite(t, c, "slow ")
		n.SetDelay("n1", "n2", 0)
		mustWrite(t, c, "fast")
		wantRead(t, s, "slow fast")
		if d := time.Since(start); d != 300*time.Millisecond {
			t.Fatalf("arrived after %v", d)
		}
		mustWrite(t, s, "x")
		start = time.Now()
		wantRead(t, c, "x")
		if d := time.Since(start); d != 10*time.Millisecond {
			t.Fatalf("default delay was %v", d)
		}
	})
}

func TestFakeNetJitterIsSeeded(t *testing.T) {
	arrivals := func(t *testing.T, seed uint64) (out []time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			n := NewFakeNet()
			n.Seed(seed)
			n.SetDefaultDelay(0, time.Second)
			c, s := pair(t, n)
			for range 5 {
				start := time.Now()
				mustWrite(t, c, "x")
				wantRead(t, s, "x")
				out = append(out, time.Since(start))
			}
		})
		return out
	}
	a, b, c := arrivals(t, 7), arrivals(t, 7), arrivals(t, 8)
	same := true
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("seed 7 gave %v, then %v", a, b)
		}
		same = same && a[i] == c[i]
	}
	if same {
		t.Fatalf("seeds 7 and 8 both gave %v", a)
	}
}

func TestFakeNetCloseDeliversThenEOF(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t, NewFakeNet())
		mustWrite(t, c, "last")
		c.Close()
		if _, err := c.Read(nil); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("read after close: %v", err)
		}
		if _, err := s.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Fatalf("write to closed peer: %v", err)
		}
		if b, err := io.ReadAll(s); string(b) != "last" || err != nil {
			t.Fatalf("read %q, %v", b, err)
		}
	})
}

func TestFakeNetHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t, NewFakeNet())
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		mustWrite(t, s, "still")
		wantRead(t, c, "still")
	})
}

func TestFakeNetKillAndRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		old := n.Host("n2")
		c, s := pair(t, n)
		mustWrite(t, s, "sent")
		n.Kill("n2")
		wantRead(t, c, "sent") // the kernel had it already
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("after the kill: %v", err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("at the killed host: %v", err)
		}
		if _, err := old.Listen("n2:1"); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("dead handle listens: %v", err)
		}
		if _, err := old.Dial(t.Context(), "n1:1"); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("dead handle dials: %v", err)
		}
		if _, err := n.Host("n1").Dial(t.Context(), "n2:1"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("dial of a dead process: %v", err)
		}
		c, s = pair(t, n) // a new handle of the same host
		mustWrite(t, c, "again")
		wantRead(t, s, "again")
	})
}

func TestFakeNetPowerCutIsSilentUntilBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		c, _ := pair(t, n)
		n.Isolate("n2")
		n.Kill("n2")
		wantSilence(t, c, time.Hour)
		n.Rejoin("n2")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("after the reboot: %v", err)
		}
	})
}

func TestFakeNetDropAndResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		c, s := pair(t, n)
		n.Cut("n1", "n2")
		n.Drop("n2", "n1")
		for _, e := range []net.Conn{c, s} {
			if _, err := e.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("dropped connection: %v", err)
			}
		}
		n.HealAll()
		c, s = pair(t, n)
		n.SetResets(1)
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("write with certain reset: %v", err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("other end of it: %v", err)
		}
	})
}

func TestFakeNetFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		c, s := pair(t, n)
		l, err := n.Host("n2").Listen(":2")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		n.Freeze("n2")
		mustWrite(t, c, "hello")
		mustWrite(t, s, "held")
		wantSilence(t, s, time.Minute)
		wantSilence(t, c, time.Minute)
		if _, err := n.Host("n1").Dial(t.Context(), "n2:2"); err != nil {
			t.Fatalf("a stopped process's kernel still connects: %v", err)
		}
		accepted := make(chan time.Time)
		go func() { _, _ = l.Accept(); accepted <- time.Now() }()
		time.Sleep(time.Minute)
		thawed := time.Now()
		n.Thaw("n2")
		if at := <-accepted; !at.Equal(thawed) {
			t.Fatalf("accepted %v before thawing", thawed.Sub(at))
		}
		wantRead(t, s, "hello")
		wantRead(t, c, "held")
	})
}

func TestFakeNetDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		h1, h2 := n.Host("n1"), n.Host("n2")
		if _, err := h1.Dial(t.Context(), "nowhere:1"); !errors.Is(err, errNoHost) {
			t.Fatalf("unknown host: %v", err)
		}
		if _, err := h2.Listen("n1:1"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Fatalf("foreign address: %v", err)
		}
		l, err := h2.Listen("n2:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if _, err := h2.Listen(l.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatalf("used address: %v", err)
		}
		n.Cut("n2", "n1") // only the answer is lost: no connection either
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := h1.Dial(ctx, l.Addr().String()); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 2*time.Second {
			t.Fatalf("dial over a cut link: %v after %v", err, time.Since(start))
		}
		time.AfterFunc(time.Second, n.HealAll)
		c, err := h1.Dial(t.Context(), l.Addr().String())
		if err != nil {
			t.Fatalf("dial across the healing: %v", err)
		}
		if got := hostOf(c.LocalAddr().String()); got != "n1" {
			t.Fatalf("source host %q", got)
		}
	})
}

func TestFakeNetReadDeadlineFromOutsideInterrupts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := pair(t, NewFakeNet())
		time.AfterFunc(time.Second, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	})
}
