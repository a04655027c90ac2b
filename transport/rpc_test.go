package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// counting counts the connections that a network opens.
type counting struct {
	Network
	dials atomic.Int32
}

func (c *counting) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c.dials.Add(1)
	return c.Network.Dial(ctx, addr)
}

type rpcBed struct {
	net    *FakeNet
	dialer *counting
	srv    *RPCServer
	client *Client
	logs   logs
}

const (
	nodeS = "11111111-0000-4000-8000-000000000001"
	nodeC = "22222222-0000-4000-8000-000000000002"
	addrS = "n1:7400"
)

// inRPCBed runs body with a server on n1 and a client on n2, in a bubble.
func inRPCBed(t *testing.T, body func(t *testing.T, b *rpcBed)) {
	synctest.Test(t, func(t *testing.T) {
		b := &rpcBed{net: NewFakeNet()}
		ca := newCA(t, clusterA)
		m, err := Listen(b.net.Host("n1"), addrS, ServerConfig{Identity: identity(t, ca, nodeS, 1), Log: b.logs.logger()})
		if err != nil {
			t.Fatal(err)
		}
		b.srv = NewRPCServer(b.logs.logger())
		b.dialer = &counting{Network: b.net.Host("n2")}
		b.client = NewClient(&Dialer{Network: b.dialer, Identity: identity(t, ca, nodeC, 1)})
		go func() { _ = b.srv.Serve(m.Listener(KindRPC)) }()
		defer func() {
			b.client.Close()
			b.srv.Close()
			m.Close()
			b.net.HealAll()
			time.Sleep(time.Minute) // dials and farewells under way end
		}()
		body(t, b)
	})
}

type (
	greetReq  struct{ Name string }
	greetResp struct{ Text string }
)

func TestRPCCallAndReuse(t *testing.T) {
	inRPCBed(t, func(t *testing.T, b *rpcBed) {
		Register(b.srv, "greet", func(_ context.Context, from Peer, r greetReq) (greetResp, error) {
			return greetResp{r.Name + " from " + from.NodeID}, nil
		})
		for i := range 20 {
			var resp greetResp
			if err := b.client.Call(t.Context(), addrS, nodeS, "greet", greetReq{fmt.Sprint(i)}, &resp); err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprint(i) + " from " + nodeC; resp.Text != want {
				t.Fatalf("got %q, want %q", resp.Text, want)
			}
		}
		if err := b.client.Call(t.Context(), addrS, nodeS, "greet", greetReq{}, nil); err != nil {
			t.Fatalf("dropped answer: %v", err)
		}
		if n := b.dialer.dials.Load(); n != 1 {
			t.Fatalf("%d connections for calls in a row", n)
		}
		// Another expectation is another pool: the first connection proves nothing about it.
		err := b.client.Call(t.Context(), addrS, nodeC, "greet", greetReq{}, nil)
		if !errors.Is(err, ErrOtherNode) || !strings.Contains(err.Error(), addrS) {
			t.Fatalf("wrong node: %v", err)
		}
		if err := b.client.Call(t.Context(), addrS, "", "greet", greetReq{}, nil); err != nil {
			t.Fatalf("any node: %v", err)
		}
	})
}

func TestRPCErrors(t *testing.T) {
	full := &Error{Code: CodeNotLeader, Message: "not the leader", Hint: "ask there", Leader: "n3:7400"}
	for _, c := range []struct {
		name string
		err  error
		want *Error
	}{
		{"as it is", full, full},
		{"wrapped", fmt.Errorf("decide: %w", full), full},
		{"unknown", errors.New("disk on fire"), &Error{Code: CodeInternal, Message: "disk on fire"}},
		{"deadline", fmt.Errorf("wait: %w", context.DeadlineExceeded), &Error{Code: CodeTimeout, Message: "wait: context deadline exceeded"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inRPCBed(t, func(t *testing.T, b *rpcBed) {
				Register(b.srv, "x", func(context.Context, Peer, struct{}) (struct{}, error) { return struct{}{}, c.err })
				err := b.client.Call(t.Context(), addrS, nodeS, "x", struct{}{}, nil)
				got, ok := errors.AsType[*Error](err)
				if !ok {
					t.Fatalf("%v is no *Error", err)
				}
				if d := cmp.Diff(c.want, got); d != "" {
					t.Fatal(d)
				}
			})
		})
	}
}

func codeOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

func TestRPCRefusals(t *testing.T) {
	inRPCBed(t, func(t *testing.T, b *rpcBed) {
		Register(b.srv, "size", func(_ context.Context, _ Peer, s string) (int, error) { return len(s), nil })
		Register(b.srv, "big", func(_ context.Context, _ Peer, n int) (string, error) { return strings.Repeat("x", n), nil })
		Register(b.srv, "panic", func(context.Context, Peer, struct{}) (struct{}, error) { panic("at the disco") })
		call := func(name string, req, resp any) error {
			return b.client.Call(t.Context(), addrS, nodeS, name, req, resp)
		}
		var n int
		if err := call("size", strings.Repeat("x", MaxRequest-2), &n); err != nil || n != MaxRequest-2 {
			t.Fatalf("largest request: %d, %v", n, err)
		}
		if err := call("size", strings.Repeat("x", MaxRequest-1), &n); codeOf(err) != CodeTooLarge {
			t.Fatalf("request above the limit: %v", err)
		}
		if err := call("big", MaxAnswer, nil); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Fatalf("answer above the limit: %v", err)
		}
		if err := call("size", 17, nil); codeOf(err) != CodeBadRequest {
			t.Fatalf("wrong type: %v", err)
		}
		if err := call("nosuch", 17, nil); codeOf(err) != CodeNotFound || !strings.Contains(err.Error(), "nosuch") {
			t.Fatalf("unknown call: %v", err)
		}
		if err := call("panic", struct{}{}, nil); codeOf(err) != CodeInternal || strings.Contains(err.Error(), "disco") {
			t.Fatalf("panic: %v", err)
		}
		if !strings.Contains(b.logs.String(), "at the disco") {
			t.Fatal("the panic is not in the log")
		}
		if err := call("size", "still alive", &n); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRPCServerLimitsBodiesItself(t *testing.T) {
	inRPCBed(t, func(t *testing.T, b *rpcBed) {
		Register(b.srv, "size", func(_ context.Context, _ Peer, s string) (int, error) { return len(s), nil })
		c, err := b.client.http.DialContext(t.Context(), "tcp", poolKey(addrS, nodeS))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = fmt.Fprintf(c, "POST /rpc/size HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", MaxRequest+1)
		go func() { _, _ = c.Write(make([]byte, MaxRequest+1)) }()
		wantRead(t, c, "HTTP/1.1 413 Request Entity Too Large")
	})
}

func TestRPCSlowBodyIsCut(t *testing.T) {
	inRPCBed(t, func(t *testing.T, b *rpcBed) {
		Register(b.srv, "size", func(_ context.Context, _ Peer, s string) (int, error) { return len(s), nil })
		c, err := b.client.http.DialContext(t.Context(), "tcp", poolKey(addrS, nodeS))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte("POST /rpc/size HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n\"abc"))
		start := time.Now()
		wantRead(t, c, "HTTP/1.1 400")
		if d := time.Since(start); d != bodyTimeout {
			t.Fatalf("cut after %v", d)
		}
	})
}

func TestRPCDeadlineReachesHandler(t *testing.T) {
	inRPCBed(t, func(t *testing.T, b *rpcBed) {
		ended := make(chan time.Duration, 1)
		Register(b.srv, "wait", func(ctx context.Context, _ Peer, _ struct{}) (struct{}, error) {
			start := time.Now()
			<-ctx.Done()
			ended <- time.Since(start)
			return struct{}{}, ctx.Err()
		})
		// The server cannot learn from the connection that the caller has given up.
		time.AfterFunc(time.Second, func() { b.net.Isolate("n2") })
		start := time.Now()
		err := b.client.Call(ctxFor(t, 3*time.Second), addrS, nodeS, "wait", struct{}{}, nil)
		if err == nil || time.Since(start) > 3*time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
		if d := <-ended; d < 2990*time.Millisecond || d > 3*time.Second {
			t.Fatalf("handler ended after %v", d)
		}
		b.net.HealAll()
		start = time.Now()
		err = b.client.Call(t.Context(), addrS, nodeS, "wait", struct{}{}, nil)
		if err == nil || time.Since(start) != defaultCallTimeout {
			t.Fatalf("no deadline given: %v after %v", err, time.Since(start))
		}
	})
}

func TestRPCCancelReachesHandler(t *testing.T) {
	inRPCBed(t, func(t *testing.T, b *rpcBed) {
		ended := make(chan error, 1)
		Register(b.srv, "wait", func(ctx context.Context, _ Peer, _ struct{}) (struct{}, error) {
			<-ctx.Done()
			ended <- ctx.Err()
			return struct{}{}, ctx.Err()
		})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		err := b.client.Call(ctx, addrS, nodeS, "wait", struct{}{}, nil)
		e, answered := errors.AsType[*Error](err) // the handler's answer may be the quicker one
		if !errors.Is(err, context.Canceled) && (!answered || e.Message != context.Canceled.Error()) {
			t.Fatalf("%v (%T)", err, errors.Unwrap(err))
		}
		if err := <-ended; !errors.Is(err, context.Canceled) || time.Since(start) != time.Second {
			t.Fatalf("handler: %v after %v", err, time.Since(start))
		}
	})
}

// A handler may take longer than any time limit on reading a request.
func TestRPCLongHandler(t *testing.T) {
	inRPCBed(t, func(t *testing.T, b *rpcBed) {
		Register(b.srv, "work", func(ctx context.Context, _ Peer, d time.Duration) (string, error) {
			select {
			case <-time.After(d):
				return "done", nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		})
		var got string
		err := b.client.Call(ctxFor(t, 5*time.Minute), addrS, nodeS, "work", 4*time.Minute, &got)
		if err != nil || got != "done" {
			t.Fatalf("%q, %v", got, err)
		}
	})
}

func TestRPCCutAndHeal(t *testing.T) {
	inRPCBed(t, func(t *testing.T, b *rpcBed) {
		Register(b.srv, "ok", func(context.Context, Peer, struct{}) (struct{}, error) { return struct{}{}, nil })
		call := func(d time.Duration) error {
			return b.client.Call(ctxFor(t, d), addrS, nodeS, "ok", struct{}{}, nil)
		}
		if err := call(time.Second); err != nil {
			t.Fatal(err)
		}
		b.net.Cut("n1", "n2")
		for range 3 {
			start := time.Now()
			if err := call(time.Second); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
				t.Fatalf("over a cut link: %v after %v", err, time.Since(start))
			}
		}
		b.net.HealAll()
		if err := call(time.Second); err != nil {
			t.Fatalf("after healing: %v", err)
		}
	})
}

func TestRPCServerGoneAndBack(t *testing.T) {
	inRPCBed(t, func(t *testing.T, b *rpcBed) {
		Register(b.srv, "ok", func(context.Context, Peer, struct{}) (struct{}, error) { return struct{}{}, nil })
		if err := b.client.Call(t.Context(), addrS, nodeS, "ok", struct{}{}, nil); err != nil {
			t.Fatal(err)
		}
		b.net.Drop("n1", "n2")
		if err := b.client.Call(t.Context(), addrS, nodeS, "ok", struct{}{}, nil); err != nil {
			t.Fatalf("after a reset of the idle connection: %v", err)
		}
		b.net.Kill("n1")
		if err := b.client.Call(t.Context(), addrS, nodeS, "ok", struct{}{}, nil); err == nil {
			t.Fatal("a killed server answered")
		}
	})
}
