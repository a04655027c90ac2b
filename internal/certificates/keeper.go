package certificates

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"matriarch/internal/identity"
	"matriarch/pgmanager"
	"matriarch/transport"
)

// Postgres is where PostgreSQL's certificates go.
type Postgres interface {
	TLS() (pgmanager.TLSFiles, error)
	InstallTLS(pgmanager.TLSFiles) (changed bool, err error)
	Reload(context.Context) error
}

// Own names files that the operator brought. Empty: none.
type Own struct{ CertFile, KeyFile, CAFile string }

// Config says whose certificates are kept.
type Config struct {
	Dir      identity.Dir
	Self     identity.Identity
	TLS      *transport.NodeTLS
	Postgres Postgres // nil leaves PostgreSQL's to the operator
	IPs      []net.IP // of the peer port, for people's tools: nodes check UUIDs
	Host     string   // by which the other nodes reach PostgreSQL
	Hosts    []string // by which it is reached, Host among them
	Super    string   // database superuser
	Repl     string   // replication user
	Own      Own      // PostgreSQL's server certificate, and a CA trusted beside the cluster's
	Life     time.Duration
	Removed  func() (uuids []string, known bool) // nodes that were removed; not known before the state is
	Log      *slog.Logger
}

// Keeper keeps them. Safe for concurrent use.
type Keeper struct {
	cfg     Config
	wake    chan struct{}
	mu      sync.Mutex
	told    map[string]bool // what was complained of, so that it is said once
	refused error           // why files of the operator's are not in use
	unread  bool            // PostgreSQL was not told of its newest certificates yet

	ends atomic.Pointer[map[string]time.Time] // of what is in use; never nil
}

// New makes a keeper; it does nothing until it is asked.
func New(cfg Config) *Keeper {
	k := &Keeper{cfg: cfg, wake: make(chan struct{}, 1), told: map[string]bool{}}
	k.ends.Store(&map[string]time.Time{})
	return k
}

// Uses are the uses of certificates that Expires knows.
func Uses(postgres bool) []string {
	if postgres {
		return []string{useCA, useNode, useServer, useSuperuser, useReplication}
	}
	return []string{useCA, useNode}
}

const (
	useCA          = "ca"
	useNode        = "node"
	useServer      = "server"
	useSuperuser   = "superuser"
	useReplication = "replication"
)

// Expires is when what is in use ends, as of the last look; zero before the first. It never blocks.
func (k *Keeper) Expires(use string) time.Time { return (*k.ends.Load())[use] }

// every is how often files of the operator's are looked at, and the longest time between two looks at ours.
const every = 10 * time.Second

// Run renews what is due until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-k.wake:
		}
		_ = k.Ensure(ctx) // it was said
		t.Reset(min(every, max(k.cfg.Life/20, 100*time.Millisecond)))
	}
}

// Look makes Run look at once, for instance after a node was removed. It never blocks.
func (k *Keeper) Look() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// say logs an error once, until all is well again.
func (k *Keeper) say(err error) {
	if err == nil {
		k.told = map[string]bool{}
		return
	}
	if text := err.Error(); !k.told[text] {
		k.told[text] = true
		k.cfg.Log.Warn("certificates not all in order", "error", err)
	}
}

// Ensure makes every certificate what it should be now, and tells PostgreSQL when something changed for it. Files of the operator's that
// are refused are logged, and no error.
func (k *Keeper) Ensure(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.ensure(ctx, time.Now(), false)
	k.say(errors.Join(err, k.refused))
	if r, err := k.show(); err == nil {
		ends := map[string]time.Time{useCA: r.Expires}
		for _, c := range r.Certs {
			ends[c.Use] = c.NotAfter
		}
		k.ends.Store(&ends)
	}
	return err
}

// Hold runs something while no certificate or CA of this node changes.
func (k *Keeper) Hold(f func() error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return f()
}

// Renew issues every certificate anew.
func (k *Keeper) Renew(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ensure(ctx, time.Now(), true)
}

func (k *Keeper) ensure(ctx context.Context, now time.Time, anew bool) error {
	ca, err := k.cfg.Dir.CA()
	if err != nil {
		return err
	}
	ca.NodeLifetime = k.cfg.Life
	if err := k.node(ca, now, anew); err != nil {
		return err
	}
	if k.cfg.Postgres == nil {
		return nil
	}
	changed, err := k.postgres(ca, now, anew)
	if changed {
		k.unread = true
		k.cfg.Log.Info("certificates of the server written", "node", k.cfg.Self.Name)
	}
	if err != nil || !k.unread {
		return err
	}
	if err := k.cfg.Postgres.Reload(ctx); err != nil && !errors.Is(err, pgmanager.ErrUnverified) { // a server that does not answer was told all the same
		return fmt.Errorf("have PostgreSQL read its certificates: %w", err)
	}
	k.unread = false
	return nil
}

// node renews the certificate of the peer port.
func (k *Keeper) node(ca *transport.CA, now time.Time, anew bool) error {
	m, err := k.cfg.Dir.Material()
	if err != nil {
		return err
	}
	if !anew && fresh(m.Cert, m.Key, ca, nil, now) {
		return k.swap(m)
	}
	key, csr, err := transport.NewKeyAndCSR()
	if err != nil {
		return err
	}
	if m.Cert, err = ca.SignCSR(csr, string(k.cfg.Self.NodeID), k.cfg.Self.Name, k.cfg.IPs, now); err != nil {
		return fmt.Errorf("renew this node's certificate: %w", err)
	}
	m.Key = key
	if err := k.cfg.Dir.SavePair(m.Cert, m.Key); err != nil {
		return err
	}
	k.cfg.Log.Info("node certificate renewed", "node", k.cfg.Self.Name)
	return k.swap(m)
}

func (k *Keeper) swap(m identity.Material) error {
	if k.cfg.TLS == nil {
		return nil
	}
	return k.cfg.TLS.Swap(m.Cert, m.Key, m.CA)
}

// fresh reports whether a certificate is of this CA, names these hosts (nil: any), is not due and has its key: a power cut can leave a
// new key beside an old certificate.
func fresh(certPEM, keyPEM []byte, ca *transport.CA, hosts []string, now time.Time) bool {
	c, err := transport.Describe(certPEM, ca.CertPEM())
	if err != nil || c.Issuer == "" || !now.Before(c.Due()) || transport.CheckPair(certPEM, keyPEM) != nil {
		return false
	}
	// A life that was made shorter holds for what was issued under the longer one.
	if ca.NodeLifetime > 0 && c.NotAfter.Sub(now) > ca.NodeLifetime {
		return false
	}
	for _, h := range hosts {
		if !slices.Contains(c.Hosts, h) {
			return false
		}
	}
	return true
}

// postgres puts PostgreSQL's certificates in place and reports whether one changed.
func (k *Keeper) postgres(ca *transport.CA, now time.Time, anew bool) (bool, error) {
	f, err := k.cfg.Postgres.TLS()
	if err != nil {
		return false, err
	}
	cluster, err := k.cfg.Dir.Trusted()
	if err != nil {
		return false, err
	}
	var theirs files
	theirs, k.refused = k.brought(f, cluster, now)
	f.CA = bytes.Join([][]byte{cluster, theirs.cas}, nil)
	id := string(k.cfg.Self.NodeID)
	for _, x := range []struct {
		cert, key *[]byte
		want      transport.PostgresCert
	}{
		{&f.SuperuserCert, &f.SuperuserKey, transport.PostgresCert{NodeID: id, Role: k.cfg.Super}},
		{&f.ReplicationCert, &f.ReplicationKey, transport.PostgresCert{NodeID: id, Role: k.cfg.Repl}},
		{&f.ServerCert, &f.ServerKey, transport.PostgresCert{NodeID: id, Hosts: k.cfg.Hosts}},
	} {
		switch {
		case x.want.Role == "" && theirs.cert != nil:
			*x.cert, *x.key = theirs.cert, theirs.key
		case !anew && fresh(*x.cert, *x.key, ca, x.want.Hosts, now):
		default:
			if *x.cert, *x.key, err = ca.IssuePostgres(x.want, now); err != nil {
				return false, err
			}
		}
	}
	if f.CRL, err = k.revocations(f.CRL, now); err != nil {
		return false, err
	}
	return k.cfg.Postgres.InstallTLS(f)
}

// revocations signs the lists anew when those at hand are not the right ones.
func (k *Keeper) revocations(have []byte, now time.Time) ([]byte, error) {
	cas, err := k.cfg.Dir.CAs()
	if err != nil {
		return nil, err
	}
	gone, known := k.cfg.Removed()
	if !known && len(have) > 0 || transport.RevokedAre(have, gone, cas...) {
		return have, nil
	}
	var lists [][]byte
	for _, ca := range cas {
		list, err := ca.RevokePostgres(gone, now)
		if err != nil {
			return nil, err
		}
		lists = append(lists, list)
	}
	return bytes.Join(lists, nil), nil
}
