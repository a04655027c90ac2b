package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/internal/admin/admintest"
	"matriarch/transport"
)

const goodToken = "a-token-of-twenty-characters"

// writer remembers what it was asked for.
type writer struct {
	commands []fsm.Command
	acts     int // restarts and clones
	refuse   string
}

func (w *writer) Submit(_ context.Context, c fsm.Command) (fsm.Result, error) {
	w.commands = append(w.commands, c)
	return fsm.Result{OK: w.refuse == "", Reason: w.refuse}, nil
}

func (w *writer) RestartStandby(context.Context) error {
	w.acts++
	return errors.New("it is a primary")
}

func (w *writer) Reinit(context.Context, fsm.NodeID) error {
	w.acts++
	return nil
}

func credentials() (Credentials, error)     { return Credentials{goodToken, "admin", "s3cret"}, nil }
func strangers(a Access) (*Server, *writer) { return guarded(a, credentials) }
func guarded(a Access, c func() (Credentials, error)) (*Server, *writer) {
	w := &writer{}
	a.Credentials = c
	return New(Config{Source: source{admintest.Status(admintest.Coord1)}, Log: slog.New(slog.DiscardHandler), Access: a, Writer: w}), w
}

// ask makes a request from an address with headers in pairs.
func ask(t *testing.T, s *Server, from, method, path, text string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(text))
	r.RemoteAddr = from + ":5000"
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

const basicAdmin, basicWrong = "Basic YWRtaW46czNjcmV0", "Basic YWRtaW46d3Jvbmc="

func TestWhoMayWrite(t *testing.T) {
	for _, tc := range []struct {
		name   string
		access Access
		header []string
		want   int
	}{
		{"nobody by default", Access{}, []string{"Authorization", "Bearer " + goodToken}, http.StatusMethodNotAllowed},
		{"no credential", Access{Writes: true}, nil, http.StatusUnauthorized},
		{"bearer token", Access{Writes: true}, []string{"Authorization", "Bearer " + goodToken}, http.StatusAccepted},
		{"another token", Access{Writes: true}, []string{"Authorization", "Bearer " + goodToken + "x"}, http.StatusUnauthorized},
		{"an empty token", Access{Writes: true}, []string{"Authorization", "Bearer "}, http.StatusUnauthorized},
		{"Patroni's basic authentication", Access{Writes: true}, []string{"Authorization", basicAdmin}, http.StatusAccepted},
		{"a wrong password", Access{Writes: true}, []string{"Authorization", basicWrong}, http.StatusUnauthorized},
		{"an address that is not listed", Access{Writes: true, Allow: prefixes("10.0.0.0/8")}, []string{"Authorization", basicAdmin}, http.StatusForbidden},
		{"an address that is listed", Access{Writes: true, Allow: prefixes("192.0.2.0/24")}, []string{"Authorization", basicAdmin}, http.StatusAccepted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, w := strangers(tc.access)
			got := ask(t, s, "192.0.2.1", "POST", "/switchover", `{"leader":"coord-1","candidate":"coord-2"}`, tc.header...)
			if got.Code != tc.want {
				t.Fatalf("%d, want %d: %s", got.Code, tc.want, got.Body)
			}
			if (len(w.commands) == 1) != (tc.want == http.StatusAccepted) {
				t.Fatalf("carried out: %v", w.commands)
			}
		})
	}
	t.Run("no credential is configured", func(t *testing.T) {
		s, w := guarded(Access{Writes: true}, func() (Credentials, error) { return Credentials{}, nil })
		for _, h := range []string{"", "Bearer ", "Basic Og=="} {
			if got := ask(t, s, "192.0.2.1", "POST", "/reinitialize", "", "Authorization", h); got.Code != http.StatusUnauthorized || len(w.commands) > 0 {
				t.Fatalf("%q: %d", h, got.Code)
			}
		}
	})
}

func prefixes(list ...string) []netip.Prefix {
	out, err := ParseAllow(list)
	if err != nil {
		panic(err)
	}
	return out
}

func TestClosedReads(t *testing.T) {
	s, _ := strangers(Access{ReadsClosed: true})
	for path, want := range map[string]int{
		"/primary": 200, "/replica": 503, "/liveness": 200, "/cluster": 401, "/patroni": 401, "/history": 401, "/config": 401,
	} {
		if got := ask(t, s, "192.0.2.1", "GET", path, ""); got.Code != want || want < 400 && got.Body.Len() > 0 {
			t.Errorf("%s: %d with %d bytes, want %d", path, got.Code, got.Body.Len(), want)
		}
	}
	if got := ask(t, s, "192.0.2.1", "GET", "/cluster", "", "Authorization", "Bearer "+goodToken); got.Code != 200 {
		t.Errorf("with the token: %d", got.Code)
	}
}

// TestWritesDoWhatTheySay: Patroni's requests become the commands that the command line would give.
func TestWritesDoWhatTheySay(t *testing.T) {
	for _, tc := range []struct {
		method, path, body string
		want               int
		kind               string // of the command
	}{
		{"POST", "/switchover", `{"leader":"coord-1"}`, 202, "operation_put"},
		{"POST", "/switchover", `{"leader":"coord-2"}`, 412, ""},
		{"POST", "/switchover", `{"leader":"nobody"}`, 400, ""},
		{"POST", "/switchover", `{"leader":"coord-1","scheduled_at":"2001-01-01T00:00:00Z"}`, 400, ""},
		{"POST", "/switchover", `{"laeder":"coord-1"}`, 400, ""},
		{"POST", "/switchover", `{} {}`, 400, ""},
		{"POST", "/switchover", strings.Repeat(" ", maxBody+1) + "{}", 413, ""},
		{"POST", "/failover", `{"candidate":"coord-2"}`, 202, "operation_put"},
		{"POST", "/failover", `{}`, 400, ""},
		{"DELETE", "/switchover", ``, 412, ""},
		{"PATCH", "/config", `{"ttl":"6s"}`, 202, "settings_put"},
		{"PATCH", "/config", `{"maximum_lag":1048576,"leader_avoid":false}`, 202, "settings_put"},
		{"POST", "/reinitialize", `{"force":true}`, 202, ""},
		{"PATCH", "/config", `{"ttl":"1s"}`, 400, ""},
		{"PATCH", "/config", `{"nosuch":1}`, 400, ""},
		{"POST", "/restart", ``, 412, ""},
		{"POST", "/reinitialize", ``, 202, ""},
	} {
		s, w := strangers(Access{Writes: true})
		got := ask(t, s, "192.0.2.1", tc.method, tc.path, tc.body, "Authorization", basicAdmin)
		kind := ""
		if len(w.commands) > 0 {
			kind = w.commands[0].Kind()
		}
		if got.Code != tc.want || kind != tc.kind {
			t.Errorf("%s %s %.60s: %d %q, want %d %q: %s", tc.method, tc.path, tc.body, got.Code, kind, tc.want, tc.kind, got.Body)
		}
	}
	s, w := strangers(Access{Writes: true})
	w.refuse = "another operation is under way"
	if got := ask(t, s, "192.0.2.1", "POST", "/switchover", `{"group":0}`, "Authorization", basicAdmin); got.Code != 412 || !strings.Contains(got.Body.String(), w.refuse) {
		t.Errorf("a refusal: %d %s", got.Code, got.Body)
	}
}

func TestRates(t *testing.T) {
	now := time.Now()
	s, _ := strangers(Access{Writes: true, Rate: 10})
	s.gate.now = func() time.Time { return now }
	count := func(from string, n int, header ...string) (ok int) {
		for range n {
			if got := ask(t, s, from, "GET", "/cluster", "", header...); got.Code == 200 {
				ok++
			}
		}
		return ok
	}
	if n := count("192.0.2.1", 30); n != 20 {
		t.Errorf("%d of 30 at once were answered, want 20", n)
	}
	if n := count("192.0.2.2", 5); n != 5 {
		t.Errorf("another address got %d answers", n)
	}
	now = now.Add(time.Second)
	if n := count("192.0.2.1", 30); n != 10 {
		t.Errorf("%d answers a second later, want 10", n)
	}
	s, _ = strangers(Access{Writes: true})
	s.gate.now = func() time.Time { return now }
	for range guesses {
		ask(t, s, "192.0.2.1", "POST", "/reinitialize", "", "Authorization", basicWrong)
	}
	if got := ask(t, s, "192.0.2.1", "POST", "/reinitialize", "", "Authorization", basicAdmin); got.Code != http.StatusTooManyRequests {
		t.Errorf("after %d wrong passwords: %d", guesses, got.Code)
	}
	if got := ask(t, s, "192.0.2.2", "POST", "/reinitialize", "", "Authorization", basicAdmin); got.Code != http.StatusAccepted {
		t.Errorf("somebody else meanwhile: %d", got.Code)
	}
	now = now.Add(time.Minute)
	if got := ask(t, s, "192.0.2.1", "POST", "/reinitialize", "", "Authorization", basicAdmin); got.Code != http.StatusAccepted {
		t.Errorf("a minute later: %d", got.Code)
	}
}

// TestClientCertificates goes through a real port: no certificate, the right CA, a foreign one, an expired one.
func TestClientCertificates(t *testing.T) {
	ca, foreign := newCA(t), newCA(t)
	other, err := transport.NewCA("0aaaaaaa-0000-4000-8000-000000000002", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	node := "n"
	pair := func(ca *transport.CA, role string, now time.Time) tls.Certificate {
		cert, key, err := ca.IssuePostgres(transport.PostgresCert{NodeID: node, Role: role, Hosts: []string{"127.0.0.1"}}, now)
		if err != nil {
			t.Fatal(err)
		}
		p, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.CertPEM())
	s, _ := strangers(Access{Writes: true, ReadsClosed: true, Revoked: func(c *x509.Certificate) bool { return transport.NodeOf(c) == "gone" }})
	s.cfg.TLS = &tls.Config{Certificates: []tls.Certificate{pair(ca, "", time.Now())}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	year := 400 * 24 * time.Hour
	node = "gone"
	removed := pair(ca, "ops", time.Now())
	node = "n"
	for _, tc := range []struct {
		name string
		show *tls.Certificate
		want int // 0: not even a handshake
	}{
		{"none", nil, 401},
		{"of the CA", new(pair(ca, "ops", time.Now())), 200},
		{"of a foreign CA", new(pair(foreign, "ops", time.Now())), 0},
		{"of another cluster", new(pair(other, "ops", time.Now())), 0},
		{"of a removed node", &removed, 401},
		{"expired", new(pair(ca, "ops", time.Now().Add(-year))), 0},
		{"a server's", new(pair(ca, "", time.Now())), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
			if tc.show != nil {
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tc.show, nil }
			}
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}, Timeout: 5 * time.Second}
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+l.Addr().String()+"/cluster", nil)
			res, err := client.Do(req)
			code := 0
			if err == nil {
				code = res.StatusCode
				_ = res.Body.Close()
			}
			if code != tc.want {
				t.Errorf("%d, want %d (%v)", code, tc.want, err)
			}
		})
	}
}

func newCA(t *testing.T) *transport.CA {
	t.Helper()
	ca, err := transport.NewCA("0aaaaaaa-0000-4000-8000-000000000001", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// TestBadClientsAtThePort: bytes that are no HTTP, headers that are too long, and clients that stop in the middle.
func TestBadClientsAtThePort(t *testing.T) {
	s, _ := strangers(Access{Writes: true})
	s.http.ReadHeaderTimeout, s.http.ReadTimeout = 200*time.Millisecond, 200*time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	for name, text := range map[string]string{
		"random bytes":   "\x00\x16\x03\x01\xff\xfe\r\n\r\n",
		"long header":    "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
		"half a header":  "GET / HTTP/1.1\r\nHost:",
		"half a body":    "POST /switchover HTTP/1.1\r\nHost: x\r\nAuthorization: " + basicAdmin + "\r\nContent-Length: 100\r\n\r\n{",
		"not a word":     "",
		"smuggled":       "POST /switchover HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
		"absurd version": "GET / HTTP/9.9\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = c.Write([]byte(text))
			answer, err := io.ReadAll(c)
			if err, ok := errors.AsType[net.Error](err); ok && err.Timeout() {
				t.Error("the connection was held")
			}
			if bytes.Contains(answer, []byte(" 200 ")) || bytes.Contains(answer, []byte(" 202 ")) {
				t.Errorf("answered by %.80q", answer)
			}
		})
	}
}

func FuzzRESTBodies(f *testing.F) {
	for _, b := range []string{`{"leader":"coord-1"}`, `{"ttl":6}`, `{"scheduled_at":"x"}`, `[`, "{}{}", `{"group":-1}`} {
		f.Add("POST", "/switchover", []byte(b))
		f.Add("PATCH", "/config", []byte(b))
	}
	s, _ := strangers(Access{Writes: true})
	h := s.Handler()
	f.Fuzz(func(t *testing.T, method, path string, b []byte) {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://x/", bytes.NewReader(b))
		if err != nil {
			return
		}
		r.URL.Path, r.RemoteAddr = path, "192.0.2.1:1"
		r.Header.Set("Authorization", basicAdmin)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%s %s: %s", method, path, w.Body)
		}
	})
}
