package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"matriarch/fsm"
	"matriarch/transport"
)

// ErrNone says that this state directory belongs to no cluster yet.
var ErrNone = errors.New("this host belongs to no cluster yet: start one with 'matriarch bootstrap' or enter one with 'matriarch join'")

// Identity is who this node is. The certificate says the same of node and cluster.
type Identity struct {
	ClusterID   string     `json:"cluster_id"`
	Incarnation uint64     `json:"incarnation"` // of the control plane, part of every handshake
	NodeID      fsm.NodeID `json:"node_id"`
	Name        string     `json:"name"`
}

// Peer is a node and where it was last known to be: for first contact only.
type Peer struct {
	ID   fsm.NodeID `json:"id"`
	Name string     `json:"name"`
	Addr string     `json:"addr"` // host:port of the peer port
}

// Names of the generated secrets.
const (
	Superuser   = "superuser"   // password of the database superuser
	Replication = "replication" // password of the replication user
	Gossip      = "gossip"      // key of the gossip
)

// Dir is a node's state directory, config key state_dir.
type Dir string

// File is identity.json, whose presence says that the directory belongs to a cluster.
func (d Dir) File() string { return filepath.Join(string(d), "identity.json") }

// PeersFile lists the last known peers.
func (d Dir) PeersFile() string { return filepath.Join(string(d), "peers.json") }

// CertFile is the node's certificate.
func (d Dir) CertFile() string { return filepath.Join(d.tlsDir(), "node.crt") }

// KeyFile is the node's private key.
func (d Dir) KeyFile() string { return filepath.Join(d.tlsDir(), "node.key") }

// CAFile is the certificate of the cluster's CA, first, and of those that are trusted beside it while it is replaced.
func (d Dir) CAFile() string { return filepath.Join(d.tlsDir(), "ca.crt") }

// CAKeyFile is the cluster's CA key: every node has it, so that any leader can sign.
func (d Dir) CAKeyFile() string { return filepath.Join(d.tlsDir(), "ca.key") }

// NextCAFile is the certificate of the CA that will take over: trusted already, signing nothing yet. It is there during a rotation only.
func (d Dir) NextCAFile() string { return filepath.Join(d.tlsDir(), "next.crt") }

// NextCAKeyFile is the key of NextCAFile.
func (d Dir) NextCAKeyFile() string { return filepath.Join(d.tlsDir(), "next.key") }

// OldCAFile is the certificate of the CA that was replaced, as long as it is trusted.
func (d Dir) OldCAFile() string { return filepath.Join(d.tlsDir(), "old.crt") }

// OldCAKeyFile is the key of OldCAFile, which still signs its revocation list.
func (d Dir) OldCAKeyFile() string { return filepath.Join(d.tlsDir(), "old.key") }

// SecretFile is the file of a generated secret.
func (d Dir) SecretFile(name string) string { return filepath.Join(d.secretsDir(), name) }

func (d Dir) tlsDir() string     { return filepath.Join(string(d), "tls") }
func (d Dir) secretsDir() string { return filepath.Join(string(d), "secrets") }

// Exists reports whether the directory belongs to a cluster.
func (d Dir) Exists() bool {
	_, err := os.Stat(d.File())
	return err == nil
}

// Load reads the identity; ErrNone when there is none.
func (d Dir) Load() (Identity, error) {
	var id Identity
	err := readJSON(d.File(), &id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Identity{}, fmt.Errorf("read %s: %w", d.File(), ErrNone)
	case err != nil:
		return Identity{}, fmt.Errorf("read identity: %w", err)
	case id.ClusterID == "" || id.NodeID == "" || id.Name == "" || id.Incarnation == 0:
		return Identity{}, fmt.Errorf("read identity: %s is incomplete: restore it from a backup, or empty %s and join again", d.File(), d)
	}
	return id, nil
}

// Save writes the identity. Keys and secrets must be in place before it.
func (d Dir) Save(id Identity) error {
	if err := os.MkdirAll(string(d), 0o755); err != nil { // PostgreSQL's own user passes through it
		return fmt.Errorf("save identity: %w", err)
	}
	if err := writeJSON(d.File(), id); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	return nil
}

// Peers reads the last known peers; none is no error.
func (d Dir) Peers() ([]Peer, error) {
	var out []Peer
	if err := readJSON(d.PeersFile(), &out); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	return out, nil
}

// SavePeers replaces the list of known peers.
func (d Dir) SavePeers(peers []Peer) error {
	if err := writeJSON(d.PeersFile(), peers); err != nil {
		return fmt.Errorf("save peers: %w", err)
	}
	return nil
}

// Material is a node's certificate and keys, in PEM. CAKey may be empty.
type Material struct {
	Cert, Key, CA, CAKey []byte
}

// SaveMaterial writes certificate and keys.
func (d Dir) SaveMaterial(m Material) error {
	if err := privateDir(d.tlsDir()); err != nil {
		return fmt.Errorf("save certificates: %w", err)
	}
	for _, f := range []struct {
		path string
		data []byte
	}{{d.CAFile(), m.CA}, {d.CAKeyFile(), m.CAKey}, {d.KeyFile(), m.Key}, {d.CertFile(), m.Cert}} {
		if len(f.data) == 0 {
			continue
		}
		if err := writeFile(f.path, f.data); err != nil {
			return fmt.Errorf("save certificates: %w", err)
		}
	}
	return nil
}

// SavePair replaces the node's certificate and key. A power cut in between leaves a pair that does not fit: see TLS.
func (d Dir) SavePair(cert, key []byte) error {
	// One file with both would need no order; two names are what older versions read.
	if err := writeFile(d.pendingFile(), append(bytes.Clone(cert), key...)); err != nil {
		return fmt.Errorf("save certificate: %w", err)
	}
	if err := d.SaveMaterial(Material{Cert: cert, Key: key}); err != nil {
		return err
	}
	if err := os.Remove(d.pendingFile()); err != nil && !errors.Is(err, fs.ErrNotExist) { // somebody else finished it
		return fmt.Errorf("save certificate: %w", err)
	}
	return nil
}

// finishPair ends a SavePair that was cut off.
func (d Dir) finishPair() error {
	both, err := readFile(d.pendingFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finish the renewal of the certificate: %w", err)
	}
	at := bytes.Index(both, []byte("-----BEGIN PRIVATE KEY-----"))
	if at < 0 {
		return fmt.Errorf("finish the renewal of the certificate: %s is damaged: remove it", d.pendingFile())
	}
	return d.SavePair(both[:at], both[at:])
}

func (d Dir) pendingFile() string { return filepath.Join(d.tlsDir(), "renewed.pem") }

// TLS loads the node's identity for handshakes in the incarnation that Load tells.
func (d Dir) TLS() (*transport.NodeTLS, error) {
	id, err := d.Load()
	if err != nil {
		return nil, err
	}
	if err := d.finishPair(); err != nil {
		return nil, err
	}
	m, err := d.Material()
	if err != nil {
		return nil, err
	}
	return transport.NewNodeTLS(m.Cert, m.Key, m.CA, id.Incarnation)
}

// Material loads certificate, key and all CAs that are trusted now, without the CA's key.
func (d Dir) Material() (m Material, err error) {
	for _, f := range []struct {
		path string
		into *[]byte
	}{{d.CertFile(), &m.Cert}, {d.KeyFile(), &m.Key}} {
		if *f.into, err = readFile(f.path); err != nil {
			return m, fmt.Errorf("load certificates: %w", err)
		}
	}
	m.CA, err = d.Trusted()
	return m, err
}

// Trusted is the bundle of all CAs that are trusted now, the one that signs first.
func (d Dir) Trusted() ([]byte, error) {
	bundle, err := readFile(d.CAFile())
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	for _, path := range []string{d.NextCAFile(), d.OldCAFile()} {
		more, err := readFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("load CA: %w", err)
		}
		bundle = append(bundle, more...)
	}
	return bundle, nil
}

// CA loads the cluster's CA with its key.
func (d Dir) CA() (*transport.CA, error) {
	if err := d.finishAdvance(); err != nil {
		return nil, err
	}
	return loadCA(d.CAFile(), d.CAKeyFile())
}

// CAs loads every trusted CA with its key, the one that signs first.
func (d Dir) CAs() ([]*transport.CA, error) {
	ca, err := d.CA()
	if err != nil {
		return nil, err
	}
	out := []*transport.CA{ca}
	old, err := d.OldCA()
	if err != nil {
		return nil, err
	}
	for _, f := range [][2]string{{d.NextCAFile(), d.NextCAKeyFile()}, {d.OldCAFile(), d.OldCAKeyFile()}} {
		if f[0] == d.OldCAFile() && old == "" {
			continue
		}
		more, err := loadCA(f[0], f[1])
		switch {
		case err == nil:
			out = append(out, more)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return out, nil
}

func loadCA(certFile, keyFile string) (*transport.CA, error) {
	cert, err := readFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	key, err := readFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	return transport.LoadCA(cert, key)
}

// CAFingerprint is the fingerprint that join tokens carry.
func (d Dir) CAFingerprint() (string, error) {
	cert, err := readFile(d.CAFile())
	if err != nil {
		return "", fmt.Errorf("read CA certificate: %w", err)
	}
	return transport.Fingerprint(cert)
}

// SaveSecrets writes the generated secrets, one file each.
func (d Dir) SaveSecrets(secrets map[string]string) error {
	if err := privateDir(d.secretsDir()); err != nil {
		return fmt.Errorf("save secrets: %w", err)
	}
	for name, s := range secrets {
		if name != filepath.Base(name) || name == "." || name == ".." {
			return fmt.Errorf("save secrets: %q is no name of a secret", name)
		}
		if err := writeFile(d.SecretFile(name), []byte(s+"\n")); err != nil {
			return fmt.Errorf("save secret %s: %w", name, err)
		}
	}
	return nil
}

// Secret reads one generated secret.
func (d Dir) Secret(name string) (string, error) {
	b, err := readFile(d.SecretFile(name))
	if err != nil {
		return "", fmt.Errorf("read secret %s: %w", name, err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fmt.Errorf("read secret %s: %s is empty: copy it from another node", name, d.SecretFile(name))
	}
	return s, nil
}

// Secrets reads all generated secrets by name.
func (d Dir) Secrets() (map[string]string, error) {
	entries, err := os.ReadDir(d.secretsDir())
	if err != nil {
		return nil, fmt.Errorf("read secrets: %w", err)
	}
	out := map[string]string{}
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if out[e.Name()], err = d.Secret(e.Name()); err != nil {
			return nil, err
		}
	}
	return out, nil
}
