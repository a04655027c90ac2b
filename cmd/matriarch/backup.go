package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/google/renameio/v2"

	"matriarch/fsm"
	"matriarch/internal/identity"
	"matriarch/transport"
)

const backupFormat = 1

// backup is the file that `snapshot save` writes: all that the control plane is made of. Whoever has it can become a node.
type backup struct {
	Format      int               `json:"format"`
	Made        time.Time         `json:"made"`
	Version     string            `json:"version"` // of the binary that wrote it
	ClusterID   string            `json:"cluster_id"`
	Incarnation uint64            `json:"incarnation"`
	Index       uint64            `json:"index"`
	State       json.RawMessage   `json:"state"` // see fsm.ReadSnapshot
	CA          string            `json:"ca"`
	CAKey       string            `json:"ca_key"`
	Secrets     map[string]string `json:"secrets"`
	Sum         string            `json:"sha256"` // of the rest
}

func (b backup) sum() (string, error) {
	b.Sum = ""
	text, err := json.Marshal(b)
	if err != nil {
		return "", fmt.Errorf("sum up the snapshot: %w", err)
	}
	h := sha256.Sum256(text)
	return hex.EncodeToString(h[:]), nil
}

// newBackup adds to a state what this node's state directory has besides.
func newBackup(state []byte, dir identity.Dir, now time.Time) (backup, *fsm.State, error) {
	s, err := fsm.ReadSnapshot(bytes.NewReader(state))
	if err != nil {
		return backup{}, nil, err
	}
	ca, err := dir.CA()
	if err != nil {
		return backup{}, nil, err
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return backup{}, nil, fmt.Errorf("read the CA key: %w", err)
	}
	secrets, err := dir.Secrets()
	if err != nil {
		return backup{}, nil, err
	}
	b := backup{
		Format: backupFormat, Made: now.UTC().Truncate(time.Second), Version: version, ClusterID: s.Cluster.ID, Incarnation: s.Cluster.Incarnation, Index: s.Index,
		State: bytes.TrimSpace(state), CA: string(ca.CertPEM()), CAKey: string(key), Secrets: secrets,
	}
	b.Sum, err = b.sum()
	return b, s, err
}

// write makes a file that did not exist, readable for its owner only.
func (b backup) write(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("write %s: it exists: name another file", path)
	}
	text, err := json.Marshal(b)
	if err == nil {
		err = renameio.WriteFile(path, append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the snapshot: %w", err)
	}
	return nil
}

func readBackup(path string) (backup, *fsm.State, error) {
	var b backup
	text, err := os.ReadFile(path)
	if err != nil {
		return b, nil, fmt.Errorf("read the snapshot: %w", err)
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, nil, fmt.Errorf("read the snapshot: %s is not a file of `matriarch snapshot save`: %w", path, err)
	}
	if b.Format > backupFormat {
		return b, nil, fmt.Errorf("read the snapshot: %s was written by matriarch %s in a form that this one does not know: install a newer one", path, b.Version)
	}
	if sum, err := b.sum(); err != nil || sum != b.Sum {
		return b, nil, fmt.Errorf("read the snapshot: %s is damaged or was changed: its contents do not have the sum that it names; take another copy", path)
	}
	s, err := fsm.ReadSnapshot(bytes.NewReader(b.State))
	return b, s, err
}

// material makes a certificate for a node of the snapshot, by the snapshot's own CA.
func (b backup) material(n fsm.Node, now time.Time) (identity.Material, error) {
	ca, err := transport.LoadCA([]byte(b.CA), []byte(b.CAKey))
	if err != nil {
		return identity.Material{}, fmt.Errorf("read the snapshot's CA: %w", err)
	}
	key, csr, err := transport.NewKeyAndCSR()
	if err != nil {
		return identity.Material{}, fmt.Errorf("make the node's key: %w", err)
	}
	cert, err := ca.SignCSR(csr, string(n.ID), n.Name, addresses(n.Peer, n.Postgres), now)
	if err != nil {
		return identity.Material{}, fmt.Errorf("sign the node's certificate: %w", err)
	}
	return identity.Material{Cert: cert, Key: key, CA: []byte(b.CA), CAKey: []byte(b.CAKey)}, nil
}
