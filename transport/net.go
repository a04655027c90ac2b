package transport

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"time"
)

// Network is where connections come from: TCP in production, a FakeNet host in simulations.
type Network interface {
	// Listen opens a port; addr is host:port.
	Listen(addr string) (net.Listener, error)
	// Dial connects to addr (host:port) until ctx ends.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// TCP is the real network (Linux). A silent peer is given up after about unackedTimeout.
type TCP struct {
	// Source is the address outgoing connections come from; nil lets the kernel choose.
	Source net.IP
}

const (
	// unackedTimeout is how long sent data may stay unacknowledged before the kernel ends the connection.
	unackedTimeout = 15 * time.Second
	// tcpUserTimeout is TCP_USER_TIMEOUT of linux/tcp.h, which package syscall does not name.
	tcpUserTimeout = 18
)

var tcpKeepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3}

// Listen implements Network.
func (t TCP) Listen(addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: tcpKeepAlive, Control: tuneSocket}
	l, err := lc.Listen(context.Background(), "tcp", addr) //nolint:forbidigo // an address to listen on needs no waiting for
	if err != nil {
		return nil, fmt.Errorf("%w: is the port free and the address this host's?", err)
	}
	return l, nil
}

// Dial implements Network.
func (t TCP) Dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: tcpKeepAlive, Control: tuneSocket}
	if t.Source != nil {
		d.LocalAddr = &net.TCPAddr{IP: t.Source}
	}
	return d.DialContext(ctx, "tcp", addr)
}

// tuneSocket sets what accepted connections inherit from their listener, too.
func tuneSocket(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(unackedTimeout.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return serr
}
