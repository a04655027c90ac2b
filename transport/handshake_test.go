package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// hostile builds an identity without the checks of NewNodeTLS: whatever an attacker or a broken node may have.
func hostile(t *testing.T, self Peer, signer *CA, trusts []*CA, node string, born time.Time, inc uint64) *NodeTLS {
	t.Helper()
	cert, key, _, _ := certOf(t, signer, node, born, inc)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	m := &material{self: self, leaf: pair, chain: pair, roots: x509.NewCertPool()}
	for _, ca := range trusts {
		m.roots.AddCert(ca.cert)
	}
	n := &NodeTLS{}
	n.cur.Store(m)
	n.incarnation.Store(inc)
	return n
}

// sameKeyCA is a CA certificate for another cluster under the key of ca, as if one CA served two clusters.
func sameKeyCA(ca *CA, cluster string) *CA {
	return &CA{clusterID: cluster, cert: ca.cert, key: ca.key}
}

func TestHandshakeMatrix(t *testing.T) {
	self := Peer{clusterA, nodeC}
	for _, c := range []struct {
		name   string
		client func(t *testing.T, ca, other *CA) *NodeTLS
		expect string
		want   error
		text   string // part of the dialer's error
		log    string // part of the server's line; empty: none
	}{
		{name: "member", client: func(t *testing.T, ca, _ *CA) *NodeTLS { return identity(t, ca, nodeC, 7) }, expect: nodeS},
		{name: "member, any node", client: func(t *testing.T, ca, _ *CA) *NodeTLS { return identity(t, ca, nodeC, 7) }},
		{
			name:   "another node expected",
			client: func(t *testing.T, ca, _ *CA) *NodeTLS { return identity(t, ca, nodeC, 7) },
			expect: "33333333", want: ErrOtherNode, text: nodeS, log: "bad certificate",
		},
		{
			name:   "foreign cluster",
			client: func(t *testing.T, _, _ *CA) *NodeTLS { return identity(t, newCA(t, clusterB), nodeC, 7) },
			want:   ErrForeignCluster, text: clusterB, log: clusterB,
		},
		{
			name:   "older incarnation",
			client: func(t *testing.T, ca, _ *CA) *NodeTLS { return identity(t, ca, nodeC, 6) },
			want:   ErrOtherIncarnation, text: "ours is 6", log: "ours is 7",
		},
		{
			name:   "newer incarnation",
			client: func(t *testing.T, ca, _ *CA) *NodeTLS { return identity(t, ca, nodeC, 70) },
			want:   ErrOtherIncarnation, text: "ours is 70", log: "ours is 7",
		},
		{
			name:   "right cluster id, foreign CA",
			client: func(t *testing.T, _, other *CA) *NodeTLS { return identity(t, other, nodeC, 7) },
			want:   ErrUntrusted, text: "unknown authority", log: "bad certificate",
		},
		{
			name: "foreign CA that trusts ours",
			client: func(t *testing.T, ca, other *CA) *NodeTLS {
				return hostile(t, self, other, []*CA{ca}, nodeC, time.Now(), 7)
			},
			want: ErrRefused, text: "unknown certificate authority", log: "unknown authority",
		},
		{
			name: "right CA, certificate of another cluster",
			client: func(t *testing.T, ca, _ *CA) *NodeTLS {
				return hostile(t, self, sameKeyCA(ca, clusterB), []*CA{ca}, nodeC, time.Now(), 7)
			},
			want: ErrRefused, text: "bad certificate", log: clusterB,
		},
		{
			name: "a certificate for PostgreSQL",
			client: func(t *testing.T, ca, _ *CA) *NodeTLS {
				id := hostile(t, self, ca, []*CA{ca}, nodeC, time.Now(), 7)
				cert, key, err := ca.IssuePostgres(PostgresCert{NodeID: nodeC, Role: "postgres"}, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				pair, err := tls.X509KeyPair(cert, key)
				if err != nil {
					t.Fatal(err)
				}
				id.cur.Load().leaf = pair
				return id
			},
			want: ErrRefused, text: "bad certificate", log: "does not belong to a node",
		},
		{
			name: "expired certificate",
			client: func(t *testing.T, ca, _ *CA) *NodeTLS {
				return hostile(t, self, ca, []*CA{ca}, nodeC, time.Now().Add(-NodeLifetime-time.Minute), 7)
			},
			want: ErrRefused, text: "expired", log: "expired",
		},
		{
			name: "certificate of the future",
			client: func(t *testing.T, ca, _ *CA) *NodeTLS {
				return hostile(t, self, ca, []*CA{ca}, nodeC, time.Now().Add(2*backdate), 7)
			},
			want: ErrRefused, text: "certificate", log: "not yet valid",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, ca, other := NewFakeNet(), newCA(t, clusterA), newCA(t, clusterA)
				var out logs
				m := listen(t, n.Host("n1"), addrS, ServerConfig{Identity: identity(t, ca, nodeS, 7), Log: out.logger()})
				go echo(m.Listener(KindRaft))
				d := &Dialer{Network: n.Host("n2"), Identity: c.client(t, ca, other)}
				conn, err := d.Dial(t.Context(), KindRaft, addrS, c.expect)
				synctest.Wait() // the server has logged
				if c.want == nil {
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					ping(t, conn)
					if p, ok := PeerOf(conn); !ok || p != (Peer{clusterA, nodeS}) {
						t.Fatalf("peer %v, %v", p, ok)
					}
				} else if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), addrS) {
					t.Fatalf("got %v, want %v with %q", err, c.want, c.text)
				}
				lines := strings.Count(out.String(), "\n")
				if (c.log == "" && lines != 0) || (c.log != "" && (lines != 1 || !strings.Contains(out.String(), c.log))) {
					t.Fatalf("log %q, want one line with %q", out.String(), c.log)
				}
			})
		})
	}
}

func TestHandshakeRawClients(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  func(certs []tls.Certificate) *tls.Config
		log  string
	}{
		{"no certificate", func([]tls.Certificate) *tls.Config {
			return &tls.Config{NextProtos: []string{alpn(KindRPC, clusterA, 1)}}
		}, "certificate"},
		{"no ALPN", func(certs []tls.Certificate) *tls.Config { return &tls.Config{Certificates: certs} }, "does not speak"},
		{"foreign ALPN", func(certs []tls.Certificate) *tls.Config {
			return &tls.Config{Certificates: certs, NextProtos: []string{"h2", "http/1.1"}}
		}, "does not speak"},
		{"unknown kind", func(certs []tls.Certificate) *tls.Config {
			return &tls.Config{Certificates: certs, NextProtos: []string{alpn("root", clusterA, 1)}}
		}, "does not speak"},
		{"TLS 1.2", func(certs []tls.Certificate) *tls.Config {
			return &tls.Config{Certificates: certs, NextProtos: []string{alpn(KindRPC, clusterA, 1)}, MaxVersion: tls.VersionTLS12}
		}, "version"},
		{"refusal taken as a protocol", func(certs []tls.Certificate) *tls.Config {
			return &tls.Config{Certificates: certs, NextProtos: []string{alpn(KindRPC, clusterB, 1), alpnForeign}}
		}, clusterB},
		{"refusal asked for", func(certs []tls.Certificate) *tls.Config {
			return &tls.Config{Certificates: certs, NextProtos: []string{alpnForeign, alpnIncarnation}}
		}, "does not speak"},
		{"another incarnation, told by alert", func(certs []tls.Certificate) *tls.Config {
			return &tls.Config{Certificates: certs, NextProtos: []string{alpn(KindRPC, clusterA, 2)}}
		}, "ours is 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, ca := NewFakeNet(), newCA(t, clusterA)
				var out logs
				m := listen(t, n.Host("n1"), addrS, ServerConfig{Identity: identity(t, ca, nodeS, 1), Log: out.logger()})
				for _, k := range Kinds() {
					go echo(m.Listener(k))
				}
				raw, err := n.Host("n2").Dial(t.Context(), addrS)
				if err != nil {
					t.Fatal(err)
				}
				defer raw.Close()
				cfg := c.cfg([]tls.Certificate{identity(t, ca, nodeC, 1).cur.Load().leaf})
				cfg.InsecureSkipVerify = true
				tc := tls.Client(raw, cfg)
				// A careless client goes on as long as it is let.
				_, err = tc.Write([]byte("ping"))
				if err == nil {
					_, err = tc.Read(make([]byte, 1))
				}
				if err == nil {
					t.Fatal("the server answered")
				}
				synctest.Wait()
				if !strings.Contains(out.String(), c.log) {
					t.Fatalf("log %q lacks %q", out.String(), c.log)
				}
			})
		})
	}
}

// TestDialRefusesAnExpiredServer: the dialer looks at the time by itself, as it looks at no host name.
func TestDialRefusesAnExpiredServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, ca := NewFakeNet(), newCA(t, clusterA)
		old := hostile(t, Peer{clusterA, nodeS}, ca, []*CA{ca}, nodeS, time.Now().Add(-NodeLifetime-time.Minute), 1)
		m := listen(t, n.Host("n1"), addrS, ServerConfig{Identity: old})
		go echo(m.Listener(KindRaft))
		d := &Dialer{Network: n.Host("n2"), Identity: identity(t, ca, nodeC, 1)}
		if _, err := d.Dial(t.Context(), KindRaft, addrS, ""); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "expired") {
			t.Fatalf("got %v", err)
		}
	})
}

// A server that only sends TLS alerts (an older version, another program) still gives an error that names the likely cause.
func TestDialExplainsAlerts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, ca := NewFakeNet(), newCA(t, clusterA)
		id := identity(t, ca, nodeC, 9)
		for addr, serve := range map[string]func(net.Conn){
			"n1:1": func(c net.Conn) {
				_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{id.cur.Load().leaf}, NextProtos: []string{"h2"}}).Handshake()
				c.Close()
			},
			"n1:2": func(c net.Conn) { c.Close() },
			"n1:4": func(c net.Conn) { // another TLS port of ours, such as the API's
				t := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{id.cur.Load().leaf}})
				_, _ = t.Write([]byte{welcome})
				t.Close()
			},
			"n1:3": func(c net.Conn) { _, _ = c.Write([]byte("SSH-2.0-x\r\n")); c.Close() },
		} {
			l, err := n.Host("n1").Listen(addr)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				if c, err := l.Accept(); err == nil {
					serve(c)
				}
			}()
			d := &Dialer{Network: n.Host("n2"), Identity: id}
			_, err = d.Dial(t.Context(), KindRaft, addr, "")
			if err == nil {
				t.Fatalf("%s: dial succeeded", addr)
			}
			if addr == "n1:1" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "another cluster or another incarnation (ours is 9")) {
				t.Fatalf("no application protocol: %v", err)
			}
			if addr == "n1:2" && !errors.Is(err, ErrRefused) {
				t.Fatalf("closed at once: %v", err)
			}
			if addr == "n1:4" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "chose protocol")) {
				t.Fatalf("no ALPN: %v", err)
			}
			l.Close()
		}
	})
}

func TestDialHonoursContextAndTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, ca := NewFakeNet(), newCA(t, clusterA)
		l, err := n.Host("n1").Listen(addrS) // connects, then says nothing
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		d := &Dialer{Network: n.Host("n2"), Identity: identity(t, ca, nodeC, 1)}
		start := time.Now()
		if _, err := d.Dial(t.Context(), KindRPC, addrS, ""); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Fatalf("default timeout: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start = time.Now()
		if _, err := d.Dial(ctx, KindRPC, addrS, ""); !errors.Is(err, context.Canceled) || time.Since(start) != time.Second {
			t.Fatalf("cancelled: %v after %v", err, time.Since(start))
		}
		if _, err := d.Dial(ctx, KindRPC, addrS, ""); !errors.Is(err, context.Canceled) {
			t.Fatalf("ended before: %v", err)
		}
		n.Isolate("n1")
		d.Timeout = 2 * time.Second
		start = time.Now()
		if _, err := d.Dial(t.Context(), KindRPC, addrS, ""); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 2*time.Second {
			t.Fatalf("own timeout: %v after %v", err, time.Since(start))
		}
	})
}

// A connection outlives the context that it was dialled with.
func TestDialContextEndsAfterwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, ca := NewFakeNet(), newCA(t, clusterA)
		m := listen(t, n.Host("n1"), addrS, ServerConfig{Identity: identity(t, ca, nodeS, 1)})
		go echo(m.Listener(KindGossip))
		ctx, cancel := context.WithCancel(t.Context())
		c, err := (&Dialer{Network: n.Host("n2"), Identity: identity(t, ca, nodeC, 1)}).Dial(ctx, KindGossip, addrS, nodeS)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		cancel()
		time.Sleep(time.Hour)
		ping(t, c)
	})
}

func TestAllowRefusesAndTellsWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, ca := NewFakeNet(), newCA(t, clusterA)
		allow := func(k Kind, p Peer) error {
			if p.NodeID == nodeC && k == KindRaft {
				return errors.New("node was removed from the cluster")
			}
			return nil
		}
		m := listen(t, n.Host("n1"), addrS, ServerConfig{Identity: identity(t, ca, nodeS, 1), Allow: allow})
		go echo(m.Listener(KindRaft))
		go echo(m.Listener(KindRPC))
		d := &Dialer{Network: n.Host("n2"), Identity: identity(t, ca, nodeC, 1)}
		if _, err := d.Dial(t.Context(), KindRaft, addrS, ""); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "was removed") {
			t.Fatalf("got %v", err)
		}
		c, err := d.Dial(t.Context(), KindRPC, addrS, "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ping(t, c)
	})
}

func TestIncarnationChangesAtRunTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, ca := NewFakeNet(), newCA(t, clusterA)
		server, client := identity(t, ca, nodeS, 1), identity(t, ca, nodeC, 1)
		m := listen(t, n.Host("n1"), addrS, ServerConfig{Identity: server})
		go echo(m.Listener(KindRaft))
		d := &Dialer{Network: n.Host("n2"), Identity: client}
		dial := func() error {
			c, err := d.Dial(t.Context(), KindRaft, addrS, nodeS)
			if err == nil {
				c.Close()
			}
			return err
		}
		if err := dial(); err != nil {
			t.Fatal(err)
		}
		server.SetIncarnation(2)
		if err := dial(); !errors.Is(err, ErrOtherIncarnation) {
			t.Fatalf("got %v", err)
		}
		client.SetIncarnation(2)
		if err := dial(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSwapWhileServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, old, fresh := NewFakeNet(), newCA(t, clusterA), newCA(t, clusterA)
		server, client := identity(t, old, nodeS, 1), identity(t, old, nodeC, 1)
		m := listen(t, n.Host("n1"), addrS, ServerConfig{Identity: server})
		go echo(m.Listener(KindRaft))
		d := &Dialer{Network: n.Host("n2"), Identity: client}
		first, err := d.Dial(t.Context(), KindRaft, addrS, nodeS)
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		swap := func(id *NodeTLS, node string, signer *CA, bundle []byte) {
			t.Helper()
			cert, key, _, _ := certOf(t, signer, node, time.Now(), 1)
			if err := id.Swap(cert, key, bundle); err != nil {
				t.Fatal(err)
			}
			c, err := d.Dial(t.Context(), KindRaft, addrS, nodeS)
			if err != nil {
				t.Fatalf("after swapping %s: %v", node, err)
			}
			ping(t, c)
			c.Close()
		}
		both := append(old.CertPEM(), fresh.CertPEM()...)
		swap(server, nodeS, old, both)
		swap(client, nodeC, old, both)
		swap(server, nodeS, fresh, both)
		swap(client, nodeC, fresh, both)
		swap(server, nodeS, fresh, fresh.CertPEM())
		swap(client, nodeC, fresh, fresh.CertPEM())
		ping(t, first) // open connections stay
	})
}
