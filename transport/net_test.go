package transport

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The whole stack over real sockets: what the fake network cannot show.
func TestTCPFromOwnAddress(t *testing.T) {
	ca := newCA(t, clusterA)
	m := listen(t, TCP{}, "127.0.0.1:0", ServerConfig{Identity: identity(t, ca, nodeS, 1)})
	l := m.Listener(KindRPC)
	from := make(chan string, 1)
	s := NewRPCServer(nil)
	Register(s, "where", func(_ context.Context, p Peer, _ struct{}) (string, error) { return p.NodeID, nil })
	go func() { _ = s.Serve(remember{l, from}) }()
	t.Cleanup(func() { s.Close() })
	client := NewClient(&Dialer{Network: TCP{Source: net.IPv4(127, 0, 7, 9)}, Identity: identity(t, ca, nodeC, 1)})
	t.Cleanup(client.Close)
	var got string
	if err := client.Call(ctxFor(t, 20*time.Second), m.Addr().String(), nodeS, "where", struct{}{}, &got); err != nil || got != nodeC {
		t.Fatalf("%q, %v", got, err)
	}
	if host, _, _ := net.SplitHostPort(<-from); host != "127.0.7.9" {
		t.Fatalf("the server saw %s", host)
	}
}

type remember struct {
	net.Listener
	from chan string
}

func (r remember) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	if err == nil {
		r.from <- c.RemoteAddr().String()
	}
	return c, err
}

func TestTCPSocketsNoticeDeadPeers(t *testing.T) {
	l, err := TCP{}.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := TCP{}.Dial(ctxFor(t, 10*time.Second), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, conn := range map[string]net.Conn{"dialled": c, "accepted": s} {
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		get := func(level, opt int) (v int) {
			var serr error
			if err := raw.Control(func(fd uintptr) { v, serr = syscall.GetsockoptInt(int(fd), level, opt) }); err != nil || serr != nil {
				t.Fatal(err, serr)
			}
			return v
		}
		if got := get(syscall.IPPROTO_TCP, tcpUserTimeout); got != int(unackedTimeout.Milliseconds()) {
			t.Errorf("%s: user timeout %d ms", name, got)
		}
		if get(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE) == 0 || get(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE) != 5 {
			t.Errorf("%s: keepalive is not set", name)
		}
	}
}

func TestTCPListenErrorNamesTheRemedy(t *testing.T) {
	l, err := TCP{}.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ca := newCA(t, clusterA)
	_, err = Listen(TCP{}, l.Addr().String(), ServerConfig{Identity: identity(t, ca, nodeS, 1)})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "is the port free") {
		t.Fatalf("got %v", err)
	}
}
