package identity

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/transport"
)

const cluster, node = "0aaaaaaa-0000-4000-8000-000000000001", "0ccccccc-0000-4000-8000-000000000001"

func filled(t *testing.T) (Dir, Identity) {
	t.Helper()
	d := Dir(filepath.Join(t.TempDir(), "state"))
	ca, err := transport.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := transport.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignCSR(csr, node, "n1", []net.IP{net.IPv4(127, 0, 0, 1)}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	id := Identity{ClusterID: cluster, Incarnation: 3, NodeID: node, Name: "n1"}
	err = errors.Join(
		d.SaveMaterial(Material{Cert: cert, Key: key, CA: ca.CertPEM(), CAKey: caKey}),
		d.SaveSecrets(map[string]string{Superuser: "s1", Replication: "s2"}),
		d.Save(id),
	)
	if err != nil {
		t.Fatal(err)
	}
	return d, id
}

func TestRoundTrip(t *testing.T) {
	d, want := filled(t)
	got, err := d.Load()
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	tls, err := d.TLS()
	if err != nil {
		t.Fatal(err)
	}
	if tls.Self() != (transport.Peer{ClusterID: cluster, NodeID: node}) || tls.Incarnation() != 3 {
		t.Fatalf("identity of the certificate: %+v, incarnation %d", tls.Self(), tls.Incarnation())
	}
	ca, err := d.CA()
	if err != nil {
		t.Fatal(err)
	}
	if fp, err := d.CAFingerprint(); err != nil || fp != ca.Fingerprint() {
		t.Fatalf("fingerprint %s, %v", fp, err)
	}
	secrets, err := d.Secrets()
	if diff := cmp.Diff(map[string]string{Superuser: "s1", Replication: "s2"}, secrets); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
}

func TestFilesArePrivate(t *testing.T) {
	d, _ := filled(t)
	for _, f := range []string{d.File(), d.KeyFile(), d.CAKeyFile(), d.SecretFile(Superuser)} {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", f, st.Mode().Perm())
		}
	}
	for _, dir := range []string{d.tlsDir(), d.secretsDir()} {
		st, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %o", dir, st.Mode().Perm())
		}
	}
}

func TestPeers(t *testing.T) {
	d, _ := filled(t)
	if got, err := d.Peers(); err != nil || len(got) != 0 {
		t.Fatalf("without a file: %v, %v", got, err)
	}
	want := []Peer{{ID: node, Name: "n1", Addr: "127.0.0.1:7400"}}
	if err := d.SavePeers(want); err != nil {
		t.Fatal(err)
	}
	got, err := d.Peers()
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Run("no cluster", func(t *testing.T) {
		d := Dir(t.TempDir())
		if _, err := d.Load(); !errors.Is(err, ErrNone) || d.Exists() {
			t.Fatal(err)
		}
	})
	for name, text := range map[string]string{"incomplete": `{"node_id":"x"}`, "damaged": `{"node_id":`} {
		t.Run(name, func(t *testing.T) {
			d := Dir(t.TempDir())
			if err := os.WriteFile(d.File(), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Load(); err == nil || !strings.Contains(err.Error(), name) {
				t.Fatal(err)
			}
		})
	}
	t.Run("missing secret", func(t *testing.T) {
		d, _ := filled(t)
		if _, err := d.Secret(Gossip); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	})
	t.Run("secret with a path", func(t *testing.T) {
		d, _ := filled(t)
		if err := d.SaveSecrets(map[string]string{"../x": "s"}); err == nil {
			t.Fatal("accepted")
		}
	})
}
