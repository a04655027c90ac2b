package transport

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestTLSOverFakeNet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		n.SetDefaultDelay(time.Millisecond, time.Millisecond)
		c, s := pair(t, n)
		id := identity(t, newCA(t, clusterA), "node2", 1)
		srv := tls.Server(s, &tls.Config{Certificates: []tls.Certificate{id.cur.Load().leaf}})
		var wg sync.WaitGroup
		defer wg.Wait() // the bubble's clock stops with the test
		wg.Go(func() { echoOnce(srv) })
		tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		defer tc.Close()
		if err := tc.Handshake(); err != nil { // before use by two goroutines: one would wait for the other's mutex and stop the clock
			t.Fatal(err)
		}
		big := strings.Repeat("0123456789", 50_000) // many windows
		go func() { _, _ = tc.Write([]byte(big)) }()
		wantRead(t, tc, big)
	})
}

func echoOnce(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(c, c)
}

func TestHTTPOverFakeNet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewFakeNet()
		l, err := n.Host("n2").Listen(":80")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })}
		defer srv.Close()
		go func() { _ = srv.Serve(l) }()
		h1 := n.Host("n1")
		tr := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return h1.Dial(ctx, addr) }}
		defer tr.CloseIdleConnections()
		client := &http.Client{Transport: tr, Timeout: 5 * time.Second}
		post := func() (string, error) {
			res, err := client.Post("http://n2:80/", "text/plain", strings.NewReader("body"))
			if err != nil {
				return "", err
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			return string(b), err
		}
		if got, err := post(); got != "body" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		n.Isolate("n2")
		start := time.Now()
		if _, err := post(); err == nil || time.Since(start) != 5*time.Second {
			t.Fatalf("%v after %v, want a timeout after 5s", err, time.Since(start))
		}
		n.HealAll()
		if got, err := post(); got != "body" || err != nil {
			t.Fatalf("after healing: %q, %v", got, err)
		}
	})
}
