package transport

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

type joinBed struct {
	net   *FakeNet
	ca    *CA
	token Token
	logs  logs
}

type admitFunc func(context.Context, JoinRequest) (JoinResponse, error)

// inJoinBed runs body with one join server for each address, in a bubble.
func inJoinBed(t *testing.T, admit map[string]admitFunc, body func(t *testing.T, b *joinBed)) {
	synctest.Test(t, func(t *testing.T) {
		b := &joinBed{net: NewFakeNet(), ca: newCA(t, clusterA)}
		b.token = NewToken(clusterA, b.ca.Fingerprint(), time.Now().Add(time.Hour), "")
		for addr, fn := range admit {
			m, err := Listen(b.net.Host(addr), addr, ServerConfig{Identity: identity(t, b.ca, "node-"+hostOf(addr), 1), Log: b.logs.logger()})
			if err != nil {
				t.Fatal(err)
			}
			s := NewJoinServer(b.logs.logger(), fn)
			go func() { _ = s.Serve(m.Listener(KindJoin)) }()
			defer m.Close()
			defer s.Close()
		}
		body(t, b)
		time.Sleep(time.Minute)
	})
}

func (b *joinBed) join(t *testing.T, addr string, token Token, req JoinRequest) (JoinResponse, error) {
	return Join(t.Context(), b.net.Host("new"), addr, token, req)
}

func TestJoinGivesAWorkingIdentity(t *testing.T) {
	var got JoinRequest
	var ca *CA
	admit := func(_ context.Context, r JoinRequest) (JoinResponse, error) {
		got = r
		cert, err := ca.SignCSR(r.CSR, r.NodeID, r.Name, nil, time.Now())
		return JoinResponse{
			ClusterID: clusterA, Incarnation: 3, CertPEM: cert, CAPEM: ca.CertPEM(), Secrets: map[string]string{"replication": "s3"},
			Peers: []PeerAddr{{"node-n1", "one", "n1:7400"}}, ServerTime: time.Now(), Settings: []byte(`{"ttl":"5s"}`),
		}, err
	}
	inJoinBed(t, map[string]admitFunc{"n1:7400": admit}, func(t *testing.T, b *joinBed) {
		ca = b.ca
		key, csr, err := NewKeyAndCSR()
		if err != nil {
			t.Fatal(err)
		}
		req := JoinRequest{
			NodeID: nodeC, Name: "pg2", CSR: csr, Group: 1, Addresses: Addresses{"new:7400", "new:5432", "new:8008"},
			Tags: map[string]string{"a": "b"}, Version: "1.0", Now: time.Now(), PGVersion: 15, SystemID: "7",
		}
		res, err := b.join(t, "n1:7400", b.token, req)
		if err != nil {
			t.Fatal(err)
		}
		want := req
		want.TokenID, want.Secret, want.Protocol, want.From = b.token.ID, b.token.Secret, JoinProtocol, got.From
		if d := cmp.Diff(want, got); d != "" || hostOf(got.From) != "new" {
			t.Fatalf("server saw %s from %s", d, got.From)
		}
		id, err := NewNodeTLS(res.CertPEM, key, res.CAPEM, res.Incarnation)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(Peer{clusterA, nodeC}, id.Self()); d != "" {
			t.Fatal(d)
		}
		if string(res.Settings) != `{"ttl":"5s"}` || res.Secrets["replication"] != "s3" || len(res.Peers) != 1 {
			t.Fatalf("answer %+v", res)
		}
		for _, s := range []string{fmt.Sprint(got), fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", res), fmt.Sprintf("%#v", b.token), b.token.String()} {
			if strings.Contains(s, b.token.Secret) || strings.Contains(s, "s3") {
				t.Fatalf("printing shows a secret: %s", s)
			}
		}
	})
}

func TestJoinPinsTheCA(t *testing.T) {
	called := false
	admit := func(context.Context, JoinRequest) (JoinResponse, error) {
		called = true
		return JoinResponse{}, nil
	}
	inJoinBed(t, map[string]admitFunc{"n1:7400": admit}, func(t *testing.T, b *joinBed) {
		other := newCA(t, clusterA)
		_, err := b.join(t, "n1:7400", NewToken(clusterA, other.Fingerprint(), time.Time{}, ""), JoinRequest{})
		if !errors.Is(err, ErrFingerprint) || !strings.Contains(err.Error(), b.ca.Fingerprint()) || !strings.Contains(err.Error(), other.Fingerprint()) {
			t.Fatalf("want a mismatch with both fingerprints, got %v", err)
		}
		_, err = b.join(t, "n1:7400", NewToken(clusterB, b.ca.Fingerprint(), time.Time{}, ""), JoinRequest{})
		if !errors.Is(err, ErrForeignCluster) {
			t.Fatalf("token of another cluster: %v", err)
		}
		_, err = b.join(t, "n1:7400", NewToken(clusterA, b.ca.Fingerprint(), time.Now().Add(-time.Second), ""), JoinRequest{})
		if !errors.Is(err, ErrTokenExpired) {
			t.Fatalf("expired token: %v", err)
		}
		if called {
			t.Fatal("a request with its secret was sent")
		}
		_, err = b.join(t, "n1:7400", b.token, JoinRequest{})
		if err == nil || !called {
			t.Fatalf("an answer without a CA was accepted: %v", err)
		}
	})
}

func TestJoinChecksTheAnswer(t *testing.T) {
	var answer JoinResponse
	admit := func(context.Context, JoinRequest) (JoinResponse, error) { return answer, nil }
	inJoinBed(t, map[string]admitFunc{"n1:7400": admit}, func(t *testing.T, b *joinBed) {
		answer = JoinResponse{ClusterID: clusterA, CAPEM: newCA(t, clusterA).CertPEM()}
		if _, err := b.join(t, "n1:7400", b.token, JoinRequest{}); !errors.Is(err, ErrFingerprint) {
			t.Fatalf("another CA: %v", err)
		}
		answer = JoinResponse{ClusterID: clusterB, CAPEM: b.ca.CertPEM()}
		if _, err := b.join(t, "n1:7400", b.token, JoinRequest{}); !errors.Is(err, ErrFingerprint) {
			t.Fatalf("another cluster: %v", err)
		}
	})
}

// A server that shows the right CA certificate beside a leaf which that CA has not signed must not get the secret.
func TestJoinRefusesABorrowedCA(t *testing.T) {
	ca, evil := newCA(t, clusterA), newCA(t, clusterA)
	tok := NewToken(clusterA, ca.Fingerprint(), time.Time{}, "")
	leaf := identity(t, evil, nodeS, 1).cur.Load().leaf.Leaf
	cs := connState(leaf, ca.cert)
	if err := tok.verify(cs); !errors.Is(err, ErrUntrusted) {
		t.Fatalf("got %v", err)
	}
	if err := tok.verify(connState(ca.cert)); !errors.Is(err, ErrUntrusted) && !errors.Is(err, ErrForeignCluster) {
		t.Fatalf("the CA itself as a node: %v", err)
	}
	if err := tok.verify(connState()); !errors.Is(err, ErrFingerprint) {
		t.Fatalf("no certificate: %v", err)
	}
	good := identity(t, ca, nodeS, 1).cur.Load().leaf.Leaf
	if err := tok.verify(connState(good, ca.cert)); err != nil {
		t.Fatalf("the honest server: %v", err)
	}
}

func TestJoinFollowsTheLeader(t *testing.T) {
	redirect := func(to string) admitFunc {
		return func(context.Context, JoinRequest) (JoinResponse, error) {
			return JoinResponse{}, &Error{Code: CodeNotLeader, Message: "not the leader", Leader: to}
		}
	}
	var ca *CA
	ok := func(context.Context, JoinRequest) (JoinResponse, error) {
		return JoinResponse{ClusterID: clusterA, CAPEM: ca.CertPEM()}, nil
	}
	servers := map[string]admitFunc{
		"n1:7400": redirect("n2:7400"), "n2:7400": redirect("n3:7400"), "n3:7400": ok,
		"n4:7400": redirect("n5:7400"), "n5:7400": redirect("n4:7400"), "n6:7400": redirect(""),
	}
	inJoinBed(t, servers, func(t *testing.T, b *joinBed) {
		ca = b.ca
		if _, err := b.join(t, "n1:7400", b.token, JoinRequest{}); err != nil {
			t.Fatalf("two hops: %v", err)
		}
		for _, addr := range []string{"n4:7400", "n6:7400"} {
			if _, err := b.join(t, addr, b.token, JoinRequest{}); codeOf(err) != CodeNotLeader {
				t.Fatalf("leaders pointing at each other, or at nobody: %v", err)
			}
		}
	})
}

func TestJoinRefusalsReachTheHost(t *testing.T) {
	refuse := func(context.Context, JoinRequest) (JoinResponse, error) {
		return JoinResponse{}, &Error{Code: CodeRefused, Message: "name pg1 is taken", Hint: "choose another with --name"}
	}
	broken := func(context.Context, JoinRequest) (JoinResponse, error) {
		return JoinResponse{}, errors.New("secret path /x")
	}
	inJoinBed(t, map[string]admitFunc{"n1:7400": refuse, "n2:7400": broken}, func(t *testing.T, b *joinBed) {
		_, err := b.join(t, "n1:7400", b.token, JoinRequest{})
		if codeOf(err) != CodeRefused || !strings.Contains(err.Error(), "name pg1 is taken: choose another with --name") {
			t.Fatalf("got %v", err)
		}
		_, err = b.join(t, "n2:7400", b.token, JoinRequest{})
		if codeOf(err) != CodeInternal || strings.Contains(err.Error(), "/x") {
			t.Fatalf("a stranger sees internals: %v", err)
		}
		if !strings.Contains(b.logs.String(), "secret path /x") {
			t.Fatal("the log does not say what failed")
		}
		_, err = b.join(t, "n1:7400", b.token, JoinRequest{Version: strings.Repeat("x", maxJoinRequest)})
		if codeOf(err) != CodeTooLarge {
			t.Fatalf("oversized request: %v", err)
		}
		if strings.Contains(b.logs.String(), b.token.Secret) {
			t.Fatal("the log shows the secret")
		}
	})
}

// A joining host has no certificate, so it must not reach any call.
func TestJoinConnectionReachesNoRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, ca := NewFakeNet(), newCA(t, clusterA)
		m := listen(t, n.Host("n1"), "n1:7400", ServerConfig{Identity: identity(t, ca, nodeS, 1)})
		s := NewRPCServer(nil)
		Register(s, "x", func(context.Context, Peer, struct{}) (struct{}, error) {
			t.Error("handler ran for a stranger")
			return struct{}{}, nil
		})
		go func() { _ = s.Serve(m.Listener(KindJoin)) }() // even when wired wrongly
		defer s.Close()
		c, err := dialJoin(t.Context(), n.Host("n2"), "n1:7400", NewToken(clusterA, ca.Fingerprint(), time.Time{}, ""))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, ok := PeerOf(c); ok {
			t.Fatal("a join connection claims to know its peer")
		}
		_, _ = c.Write([]byte("POST /rpc/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"))
		wantRead(t, c, "HTTP/1.1 409")
	})
}

func TestJoinConnectionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, ca := NewFakeNet(), newCA(t, clusterA)
		m := listen(t, n.Host("n1"), "n1:7400", ServerConfig{Identity: identity(t, ca, nodeS, 1)})
		l := m.Listener(KindJoin)
		go echo(l)
		tok := NewToken(clusterA, ca.Fingerprint(), time.Time{}, "")
		var open []net.Conn
		for range maxJoins {
			c, err := dialJoin(t.Context(), n.Host("n2"), "n1:7400", tok)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		if _, err := dialJoin(t.Context(), n.Host("n2"), "n1:7400", tok); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "too many") {
			t.Fatalf("one too many: %v", err)
		}
		open[0].Close()
		synctest.Wait()
		c, err := dialJoin(t.Context(), n.Host("n2"), "n1:7400", tok)
		if err != nil {
			t.Fatalf("after one has left: %v", err)
		}
		for _, c := range append(open, c) {
			c.Close()
		}
	})
}

// TestJoinStrangersAreCut: whoever may open a join connection and then says nothing, half a request or rubbish holds it for a bounded time, and
// nobody is asked to admit anything.
func TestJoinStrangersAreCut(t *testing.T) {
	admit := func(context.Context, JoinRequest) (JoinResponse, error) {
		t.Error("a stranger's bytes were taken for a request")
		return JoinResponse{}, nil
	}
	inJoinBed(t, map[string]admitFunc{"n1:7400": admit}, func(t *testing.T, b *joinBed) {
		for name, c := range map[string]struct {
			says, answer string
			within       time.Duration
		}{
			"nothing":         {"", "", headerTimeout},
			"half a header":   {"POST /join HTTP/1.1\r\nHost:", "", headerTimeout},
			"half a body":     {"POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", "HTTP/1.1 400", bodyTimeout},
			"random bytes":    {"\x00\xff\x16\x03\r\n\r\n", "HTTP/1.1 400", 0},
			"a long header":   {"POST /join HTTP/1.1\r\nX: " + strings.Repeat("x", 64<<10), "HTTP/1.1 431", headerTimeout},
			"no object":       {"POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]", "HTTP/1.1 400", headerTimeout},
			"another version": {"POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{\"protocol\":9}", "HTTP/1.1 409", headerTimeout},
		} {
			conn, err := dialJoin(t.Context(), b.net.Host("stranger"), "n1:7400", b.token)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_, _ = conn.Write([]byte(c.says))
			answer, _ := io.ReadAll(conn)
			if took := time.Since(began); took > c.within+time.Second {
				t.Errorf("%s: held for %s", name, took)
			}
			if !strings.HasPrefix(string(answer), c.answer) || c.answer == "" && len(answer) > 0 {
				t.Errorf("%s: answered by %.60q, want %q", name, answer, c.answer)
			}
			conn.Close()
		}
	})
}

func TestJoinTokenOfExpiredServerCert(t *testing.T) {
	now := time.Now()
	ca := newCA(t, clusterA)
	cert, key, caPEM, _ := certOf(t, ca, nodeS, now.Add(-2*NodeLifetime), 1)
	id, err := NewNodeTLS(cert, key, caPEM, 1)
	if err != nil {
		t.Fatal(err)
	}
	m := id.cur.Load()
	err = NewToken(clusterA, ca.Fingerprint(), time.Time{}, "").verify(connState(m.leaf.Leaf, ca.cert))
	var invalid x509.CertificateInvalidError
	if !errors.Is(err, ErrUntrusted) || !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		t.Fatalf("got %v", err)
	}
}
