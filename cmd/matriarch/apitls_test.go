package main

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"matriarch/internal/config"
	"matriarch/pgmanager/pgconf"
	"matriarch/transport"
)

// TestAPIFiles replaces the files behind the HTTPS port: it shows the newest that is good, and says once what is wrong with the others.
func TestAPIFiles(t *testing.T) {
	ca, err := transport.NewCA("0aaaaaaa-0000-4000-8000-000000000001", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issue := func(at time.Time) (cert, key []byte) {
		t.Helper()
		cert, key, err := ca.IssuePostgres(transport.PostgresCert{NodeID: "n", Hosts: []string{"10.0.0.1"}}, at)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	first, firstKey := issue(time.Now())
	second, secondKey := issue(time.Now())
	expired, expiredKey := issue(time.Now().Add(-400 * 24 * time.Hour))
	dir := t.TempDir()
	cfg := config.API{CertFile: filepath.Join(dir, "a.crt"), KeyFile: filepath.Join(dir, "a.key"), ClientCAFile: filepath.Join(dir, "clients.crt")}
	var log bytes.Buffer
	var served *tls.Config
	at := time.Now().Add(-time.Hour)
	start := func() { served = apiTLS(cfg, pgconf.KeyPair{}, slog.New(slog.NewTextHandler(&log, nil))) }
	for _, r := range []struct {
		name           string
		restart        bool
		cert, key, cas []byte
		shows          []byte // nil: the handshake fails
		says           string
	}{
		{"good", true, first, firstKey, ca.CertPEM(), first, ""},
		{"replaced", false, second, secondKey, ca.CertPEM(), second, ""},
		{"the key of another", false, second, firstKey, ca.CertPEM(), second, "does not match"},
		{"expired", false, expired, expiredKey, ca.CertPEM(), second, "it expired at"},
		{"no CA for clients", false, first, firstKey, nil, second, "no certificate in it"},
		{"mended", false, first, firstKey, ca.CertPEM(), first, ""},
		{"expired from the beginning", true, expired, expiredKey, ca.CertPEM(), expired, "it expired at"},
		{"mended after that", false, first, firstKey, ca.CertPEM(), first, ""},
		{"no pair from the beginning", true, first, secondKey, ca.CertPEM(), nil, "does not match"},
		{"mended after that, too", false, first, firstKey, ca.CertPEM(), first, ""},
	} {
		t.Run(r.name, func(t *testing.T) {
			at = at.Add(time.Second)
			for path, data := range map[string][]byte{cfg.CertFile: r.cert, cfg.KeyFile: r.key, cfg.ClientCAFile: r.cas} {
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(path, at, at); err != nil {
					t.Fatal(err)
				}
			}
			if r.restart {
				start()
			}
			log.Reset()
			for range 3 {
				got, err := served.GetConfigForClient(nil)
				if (err == nil) != (r.shows != nil) {
					t.Fatal(err)
				}
				if block, _ := pem.Decode(r.shows); err == nil && !bytes.Equal(got.Certificates[0].Certificate[0], block.Bytes) {
					t.Error("it shows another")
				}
			}
			if n := strings.Count(log.String(), "level=WARN"); (n == 1) != (r.says != "") || !strings.Contains(log.String(), r.says) {
				t.Errorf("want %q once:\n%s", r.says, &log)
			}
		})
	}
}
