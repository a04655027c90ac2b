package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// places are where secrets are found in what a bundle holds; %s is the secret.
var places = []string{
	"password=%s",
	"primary_conninfo = 'host=10.0.0.1 user=r password=%s sslmode=prefer'",
	"ssl_passphrase_command: echo %s and more",
	"ssl_passphrase_command = 'echo %s'",
	`{"superuser_password":"%s","x":1}`,
	`{"replication_password": "%s"}`,
	`2026-01-01 LOG:  statement: ALTER ROLE app PASSWORD '%s';`,
	`{"msg":"create role app password '%s'"}`,
	"archive_command: AWS_SECRET_ACCESS_KEY=%s wal-g push",
	"url: https://user:%s@example.org/x",
	"postgres://user:%s@10.0.0.1:5432/db",
	"Authorization: Bearer %s",
	"curl -H 'Authorization: Bearer %s'",
	"mt1.c.%s",
	"-----BEGIN EC PRIVATE KEY-----\n%s\n-----END EC PRIVATE KEY-----",
	"-----BEGIN PRIVATE KEY-----\n%s\ncut off",
	"SCRAM-SHA-256$4096:%s==$x:y",
	"API_KEY=%s",
	`log: "password=\"%s\""`,
}

func TestSecretsByTheirLooks(t *testing.T) {
	r := NewRedactor(nil)
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.StringMatching(`[A-Za-z0-9_+/.-]{8,40}`).Draw(t, "secret")
		place := rapid.SampledFrom(places).Draw(t, "place")
		text := "before\n" + fmt.Sprintf(place, secret) + "\nafter: 1\n"
		got := string(r.Clean([]byte(text)))
		// An end of it must not stay either.
		if strings.Contains(got, secret) || strings.Contains(got, secret[len(secret)/2:]) || !strings.Contains(got, Removed) {
			t.Fatalf("%q became %q", text, got)
		}
		if !strings.HasPrefix(got, "before\n") {
			t.Fatalf("%q became %q", text, got)
		}
	})
}

func TestSecretsByHeart(t *testing.T) {
	r := NewRedactor([]string{"hunter22\n", "hunter22-and-more", "abc", ""})
	if got := string(r.Clean([]byte("x hunter22-and-more y hunter22 z abc"))); got != "x [removed] y [removed] z abc" {
		t.Error(got)
	}
}

func TestTheRestStays(t *testing.T) {
	for _, text := range []string{
		"postgresql:\n  superuser: postgres\n  parameters:\n    work_mem: 4MB\n",
		`{"rule":"R110","reason":"lease lost 0.2 s ago","keys":["a"]}`,
		"matriarch_events_total{kind=\"promoted\",name=\"n1\"} 4\n",
		"2026-01-01 FATAL:  password authentication failed for user \"app\"\n",
		"host all all 0.0.0.0/0 scram-sha-256\n",
		"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
		"https://10.0.0.1:8008/patroni",
	} {
		if got := string(NewRedactor(nil).Clean([]byte(text))); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(1700000000, 0)
	w := NewWriter(&b, "support", NewRedactor([]string{"hunter22"}), now)
	if err := errors.Join(w.Add("a/b.txt", []byte("x hunter22")), w.Add("../../etc/passwd", []byte("y")), w.Close()); err != nil {
		t.Fatal(err)
	}
	gz, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil || h.Mode != 0o600 || !h.ModTime.Equal(now) {
			t.Errorf("%+v, %v", h, err)
		}
		got[h.Name] = string(data)
	}
	if len(got) != 2 || got["support/a/b.txt"] != "x [removed]" || got["support/etc/passwd"] != "y" {
		t.Errorf("got %v", got)
	}
}
