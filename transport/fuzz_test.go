package transport

import (
	"bytes"
	"context"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// FuzzRPCBody: whatever a member sends, the answer is one of ours and no handler panics.
func FuzzRPCBody(f *testing.F) {
	type inner struct {
		N map[string][]int `json:"n"`
		T time.Time        `json:"t"`
	}
	f.Add("any", []byte(`{"n":{"a":[1]},"t":"2026-01-01T00:00:00Z"}`))
	f.Add("any", []byte(`{"n":{"a":[1e400]}}`))
	f.Add("../any", []byte(`[[[[`))
	f.Add("join", []byte(`{"token_id":"t","secret":"s","node_id":"n","csr":"AAAA","group":1,"addresses":{"peer":"h:1"},"protocol":1,"now":"2026-01-01T00:00:00Z"}`))
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		e := &endpoint{name: "any", log: log, limit: MaxRequest}
		e.call = func(context.Context, net.Conn, []byte) (any, error) { return decodeRequest[inner](body) }
		w := httptest.NewRecorder()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x/", bytes.NewReader(body))
		if err != nil {
			return
		}
		r.URL.Path = "/rpc/" + name
		NewRPCServer(log).names.ServeHTTP(httptest.NewRecorder(), r)
		r.Body = http.NoBody
		e.ServeHTTP(w, r)
		if _, err := decodeRequest[JoinRequest](body); err != nil && wireError(err).Code != CodeBadRequest {
			t.Fatalf("a join is refused by %v", err)
		}
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest && w.Code != http.StatusRequestEntityTooLarge {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
	})
}

// FuzzJoin: a stranger's request for a certificate never panics the signer, and what is signed belongs to the key that it came with.
func FuzzJoin(f *testing.F) {
	ca := newCA(f, clusterA)
	_, csr, err := NewKeyAndCSR()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr, "11111111-0000-4000-8000-000000000001", "n1")
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"), "a/b", "")
	f.Fuzz(func(t *testing.T, csr []byte, id, name string) {
		cert, err := ca.SignCSR(csr, id, name, nil, time.Now())
		if err != nil {
			return
		}
		if block, _ := pem.Decode(cert); block == nil || checkID("id", id) != nil || checkID("name", name) != nil {
			t.Fatalf("signed %q %q", id, name)
		}
	})
}
