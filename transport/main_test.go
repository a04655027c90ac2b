package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"
)

const (
	clusterA = "0aaaaaaa-0000-4000-8000-000000000001"
	clusterB = "0bbbbbbb-0000-4000-8000-000000000002"
)

func newCA(t testing.TB, cluster string) *CA {
	t.Helper()
	ca, err := NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// identity makes a node under ca, trusting ca.
func identity(t testing.TB, ca *CA, node string, inc uint64) *NodeTLS {
	t.Helper()
	id, err := NewNodeTLS(certOf(t, ca, node, time.Now(), inc))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func certOf(t testing.TB, ca *CA, node string, now time.Time, inc uint64) (cert, key, caPEM []byte, i uint64) {
	t.Helper()
	key, csr, err := NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	cert, err = ca.SignCSR(csr, node, "name-"+node, []net.IP{net.IPv4(127, 0, 0, 1)}, now)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key, ca.CertPEM(), inc
}

// logs is a slog output that tests read while it is written.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// echo answers every connection of one kind by what it says.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// ping sends a word through an echoing connection.
func ping(t testing.TB, c net.Conn) {
	t.Helper()
	if err := pingErr(c); err != nil {
		t.Fatal(err)
	}
}

func pingErr(c net.Conn) error {
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 4))
	return err
}

func ctxFor(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func listen(t testing.TB, n Network, addr string, cfg ServerConfig) *Mux {
	t.Helper()
	m, err := Listen(n, addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func connState(certs ...*x509.Certificate) tls.ConnectionState {
	return tls.ConnectionState{PeerCertificates: certs}
}
