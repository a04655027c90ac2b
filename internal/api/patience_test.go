package api

import (
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a port whose connections are net.Pipes, so that it works in a bubble.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestPatience: a client that stops is dropped, when the server as it is shipped says, and no sooner.
func TestPatience(t *testing.T) {
	drain := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	for _, tc := range []struct {
		name, text string
		then       func(net.Conn) // returns when the connection ends
		want       time.Duration
	}{
		{"nothing is said", "", drain, 5 * time.Second},
		{"half a header", "GET /cluster HTTP/1.1\r\nHost:", drain, 5 * time.Second},
		{"half a body", "POST /switchover HTTP/1.1\r\nHost: x\r\nAuthorization: " + basicAdmin + "\r\nContent-Length: 100\r\n\r\n{", drain, 10 * time.Second},
		{"the answer is not read", "GET /cluster HTTP/1.1\r\nHost: x\r\n\r\n", func(c net.Conn) {
			_, _ = c.Write([]byte("GET")) // waits, as nobody reads the next request yet
		}, 10 * time.Second},
		{"no next request", "GET /liveness HTTP/1.1\r\nHost: x\r\n\r\n", drain, time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, w := strangers(Access{Writes: true})
				p := &pipes{accept: make(chan net.Conn), closed: make(chan struct{})}
				go func() { _ = s.Serve(p) }()
				defer func() { _ = s.Close() }()
				client, server := net.Pipe()
				defer func() { _ = client.Close() }()
				time.AfterFunc(5*time.Minute, func() { _ = client.Close() })
				p.accept <- server
				began := time.Now()
				if _, err := client.Write([]byte(tc.text)); err != nil {
					t.Fatal(err)
				}
				tc.then(client)
				// net/http closes up to half a second after its last word.
				if took := time.Since(began); took < tc.want || took > tc.want+time.Second {
					t.Errorf("the connection ended after %s, want %s", took, tc.want)
				}
				if len(w.commands) > 0 {
					t.Errorf("carried out: %v", w.commands)
				}
			})
		})
	}
}
