package certificates

import (
	"context"
	"fmt"
	"time"

	"matriarch/transport"
)

// Report is what a node's certificates are like, for people and for who rotates the CA.
type Report struct {
	Node    string    `json:"node"`
	Signing string    `json:"signing"`        // fingerprint of the CA that signs
	Expires time.Time `json:"ca_not_after"`   // of that CA
	Next    string    `json:"next,omitempty"` // fingerprint of the CA that will take over
	Old     string    `json:"old,omitempty"`  // fingerprint of the CA that was replaced and is still trusted
	Certs   []Held    `json:"certificates"`
	Refused string    `json:"refused,omitempty"` // why files that the operator brought are not in use
}

// Held is one certificate in use.
type Held struct {
	Use string    `json:"use"` // node, server, superuser, replication
	Due time.Time `json:"renewed_at"`
	transport.Certificate
}

// Signed reports whether every certificate is of the CA that signs now.
func (r Report) Signed() bool {
	for _, c := range r.Certs {
		if c.Issuer != r.Signing && c.Issuer != "" {
			return false
		}
	}
	return true
}

// Show describes what is in use.
func (k *Keeper) Show() (Report, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.show()
}

func (k *Keeper) show() (Report, error) {
	out := Report{Node: k.cfg.Self.Name}
	if k.refused != nil {
		out.Refused = k.refused.Error()
	}
	bundle, err := k.cfg.Dir.Trusted()
	if err != nil {
		return out, err
	}
	ca, err := transport.Describe(bundle, nil)
	if err != nil {
		return out, err
	}
	out.Signing, out.Expires = ca.Fingerprint, ca.NotAfter
	if out.Next, err = k.cfg.Dir.NextCA(); err != nil {
		return out, err
	}
	if out.Old, err = k.cfg.Dir.OldCA(); err != nil {
		return out, err
	}
	m, err := k.cfg.Dir.Material()
	if err != nil {
		return out, err
	}
	held := []struct {
		use string
		pem []byte
	}{{useNode, m.Cert}}
	if k.cfg.Postgres != nil {
		f, err := k.cfg.Postgres.TLS()
		if err != nil {
			return out, err
		}
		held = append(held, []struct {
			use string
			pem []byte
		}{{useServer, f.ServerCert}, {useSuperuser, f.SuperuserCert}, {useReplication, f.ReplicationCert}}...)
	}
	for _, h := range held {
		c, err := transport.Describe(h.pem, bundle)
		if err != nil {
			return out, fmt.Errorf("certificate of %s: %w", h.use, err)
		}
		out.Certs = append(out.Certs, Held{Use: h.use, Due: c.Due(), Certificate: c})
	}
	return out, nil
}

// Trust is the first step of a rotation: this node also accepts who shows a certificate of the next CA, and has its key. Another CA
// than the one of a rotation under way is refused.
func (k *Keeper) Trust(ctx context.Context, certPEM, keyPEM []byte) error {
	ca, err := transport.LoadCA(certPEM, keyPEM)
	if err != nil {
		return err
	}
	if ca.ClusterID() != k.cfg.Self.ClusterID {
		return fmt.Errorf("the CA is of cluster %s, this node of %s", ca.ClusterID(), k.cfg.Self.ClusterID)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.cfg.Dir.StageCA(certPEM, keyPEM); err != nil {
		return err
	}
	return k.ensure(ctx, time.Now(), false)
}

// Sign is the second step: the CA with this fingerprint signs from now on, everything of this node first. It has to be trusted by all
// nodes before.
func (k *Keeper) Sign(ctx context.Context, fingerprint string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.cfg.Dir.AdvanceCA(fingerprint); err != nil {
		return err
	}
	return k.ensure(ctx, time.Now(), false)
}

// Forget takes back a Trust, as long as this CA does not sign here.
func (k *Keeper) Forget(ctx context.Context, fingerprint string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.cfg.Dir.ForgetCA(fingerprint); err != nil {
		return err
	}
	return k.ensure(ctx, time.Now(), false)
}

// Drop is the last step: no CA is trusted but the one with this fingerprint. All nodes have to show its certificates before.
func (k *Keeper) Drop(ctx context.Context, fingerprint string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.cfg.Dir.DropOldCA(fingerprint); err != nil {
		return err
	}
	return k.ensure(ctx, time.Now(), false)
}

// Hand gives certificate and key of the CA with this fingerprint, to members only: each of them has the key of the CA that signs.
func (k *Keeper) Hand(fingerprint string) (certPEM, keyPEM []byte, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	cas, err := k.cfg.Dir.CAs()
	if err != nil {
		return nil, nil, err
	}
	for _, ca := range cas {
		if ca.Fingerprint() == fingerprint {
			keyPEM, err := ca.KeyPEM()
			return ca.CertPEM(), keyPEM, err
		}
	}
	return nil, nil, fmt.Errorf("%s does not have the CA %s", k.cfg.Self.Name, fingerprint)
}
