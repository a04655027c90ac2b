package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"matriarch/internal/testkit"
	"matriarch/transport"
)

// refused checks an answer that must be one clear line, and that nothing came of it.
func refused(t *testing.T, r testkit.Result, code int, says ...string) {
	t.Helper()
	if r.Code != code {
		t.Errorf("exit %d, want %d: %s%s", r.Code, code, r.Out, r.Err)
	}
	if got := strings.Count(strings.TrimSpace(r.Err), "\n"); got != 0 {
		t.Errorf("%d lines, want one: %s", got+1, r.Err)
	}
	for _, s := range says {
		if !strings.Contains(r.Err, s) {
			t.Errorf("%q does not mention %q", r.Err, s)
		}
	}
	if strings.Contains(r.Err, "goroutine ") {
		t.Errorf("a panic: %s", r.Err)
	}
}

// untouched: the host is no node of anything.
func untouched(t *testing.T, n *testkit.Node) {
	t.Helper()
	for _, path := range []string{n.Config(), n.Dir + "/identity.json", n.Dir + "/secrets", n.Dir + "/tls", n.DataDir()} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s exists after a refusal", path)
		}
	}
}

// TestRefusals: who may not enter is told why, and nothing changes.
func TestRefusals(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	n1 := c.Bootstrap("n1", "--token-ttl", "3s")
	c.WaitPrimary(0)
	good := n1.NewToken("--uses", "20")
	members := len(c.State().Nodes)

	foreign := c.Lay("foreign", 0)
	r := foreign.BootstrapOnly()
	if r.Code != 0 {
		t.Fatal(r.Err)
	}
	foreignToken := testkit.TokenOf(t, r.Out)
	host := c.Lay("host", 0)

	change := func(token string, f func(*transport.Token)) string {
		t.Helper()
		x, err := transport.ParseToken(token)
		if err != nil {
			t.Fatal(err)
		}
		f(&x)
		out, err := x.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}

	c.Run("tokens", func(t *testing.T) {
		c.Eventually("the first token has expired", func() error {
			if x, err := transport.ParseToken(c.Token); err != nil || x.Expired(time.Now()) {
				return err
			}
			return errNotYet
		})
		revoked := n1.NewToken()
		x, _ := transport.ParseToken(revoked)
		if r := n1.CLI("token", "revoke", x.ID); r.Code != 0 {
			t.Fatal(r.Err)
		}
		for _, bad := range []struct{ what, token, says string }{
			{"cut short", good[:len(good)-4], "damaged"},
			{"of another cluster", foreignToken, ""},
			{"with another secret", change(good, func(x *transport.Token) { x.Secret = strings.Repeat("A", 43) }), "not known"},
			{"with another id", change(good, func(x *transport.Token) { x.ID = "00000000" }), "not known"},
			{"with another fingerprint", change(good, func(x *transport.Token) { x.CAFingerprint = "sha256:" + strings.Repeat("0", 64) }), "fingerprint"},
			{"expired", c.Token, "expired"},
			{"expired, with its date changed", change(c.Token, func(x *transport.Token) { x.Expires = time.Now().Add(time.Hour).Unix() }), "expired"},
			{"revoked", revoked, "not known"},
		} {
			t.Run(bad.what, func(t *testing.T) {
				refused(t, host.JoinOnly(bad.token, n1.Peer()), 1, bad.says)
				untouched(t, host)
			})
		}
	})

	c.Run("names and data", func(t *testing.T) {
		taken := c.Lay("n1-again", 0)
		taken.Name = "n1"
		refused(t, taken.JoinOnly(good, n1.Peer()), 1, "n1")
		untouched(t, taken)

		refused(t, foreign.JoinOnly(good, n1.Peer()), 1, "the token is for cluster", "nothing was changed")

		other := c.Lay("other-data", 0)
		initDB(t, other)
		refused(t, other.JoinOnly(good, n1.Peer()), 1, "system identifier", "move it away")
		if _, err := os.Stat(other.Config()); err == nil {
			t.Error("it has a configuration")
		}
	})

	c.Run("clock and version", func(t *testing.T) {
		for _, bad := range []struct {
			what, says string
			change     func(*transport.JoinRequest)
		}{
			{"an hour late", "clock", func(r *transport.JoinRequest) { r.Now = r.Now.Add(-time.Hour) }},
			{"an hour early", "clock", func(r *transport.JoinRequest) { r.Now = r.Now.Add(time.Hour) }},
			{"another major version", "version", func(r *transport.JoinRequest) { r.Version = "v9.0.0" }},
			{"another PostgreSQL", "PostgreSQL", func(r *transport.JoinRequest) { r.PGVersion = 11 }},
		} {
			t.Run(bad.what, func(t *testing.T) {
				token, err := transport.ParseToken(good)
				if err != nil {
					t.Fatal(err)
				}
				_, csr, err := transport.NewKeyAndCSR()
				if err != nil {
					t.Fatal(err)
				}
				req := transport.JoinRequest{
					NodeID: "6b1e42a0-6f57-4d1c-9d6c-5b8f5f3f1a01", Name: "stranger", CSR: csr, Version: "v1.0.0-test", Now: time.Now(),
					Addresses: transport.Addresses{Peer: "127.0.0.1:1", PG: "127.0.0.1:2", API: "127.0.0.1:3"},
				}
				bad.change(&req)
				_, err = transport.Join(t.Context(), transport.TCP{}, n1.Peer(), token, req)
				if err == nil || !strings.Contains(err.Error(), bad.says) {
					t.Errorf("%v should mention %q", err, bad.says)
				}
			})
		}
	})

	c.Run("bootstrap twice", func(t *testing.T) {
		refused(t, n1.BootstrapOnly(), 1, "already", "nothing was changed")
	})

	if got := len(c.State().Nodes); got != members {
		t.Errorf("%d members became %d", members, got)
	}

	// Last, for the first one is not refused. Whoever saw the token may not take a member's place with it.
	c.Run("a token used up", func(t *testing.T) {
		once := n1.NewToken("--uses", "1")
		if r := host.JoinOnly(once, n1.Peer()); r.Code != 0 {
			t.Fatal(r.Err)
		}
		refused(t, host.JoinOnly(once, n1.Peer()), 1, "used up")
		late := c.Lay("late", 0)
		refused(t, late.JoinOnly(once, n1.Peer()), 1, "used up")
		untouched(t, late)
		host.Group = 1
		refused(t, host.JoinOnly(good, n1.Peer()), 1, "group 0", "nothing was changed")
		host.Group = 0
		host.Start()
		c.WaitState("it is a standby", func(st status) error { return streams(st, host) })
	})
}
