package pgmanager

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// TLSFiles is what PostgreSQL's links need, in PEM. CRL may be empty.
type TLSFiles struct {
	CA, CRL                         []byte
	ServerCert, ServerKey           []byte
	SuperuserCert, SuperuserKey     []byte // names Config.Superuser
	ReplicationCert, ReplicationKey []byte // names Config.ReplicationUser
}

const certSuffix, keySuffix = ".crt", ".key"

func (c Config) tlsDir() string { return filepath.Join(c.RunDir, "tls") }

// tls names the files, which are there only with Config.TLS.
func (c Config) tls() *pgconf.TLS {
	pair := func(name string) pgconf.KeyPair {
		return pgconf.KeyPair{Cert: filepath.Join(c.tlsDir(), name+certSuffix), Key: filepath.Join(c.tlsDir(), name+keySuffix)}
	}
	t := &pgconf.TLS{
		Server: pair("server"), Superuser: pair("superuser"), Replication: pair("replication"), CAFile: filepath.Join(c.tlsDir(), "ca.crt"),
	}
	if !c.ForeignCA { // with a list, a CA without one would be refused as a whole
		t.CRLFile = filepath.Join(c.tlsDir(), "ca.crl")
	}
	return t
}

// TLSPaths names the files that InstallTLS writes.
func (m *Manager) TLSPaths() pgconf.TLS { return *m.cfg.tls() }

// certificates reports whether a link of this security goes by certificates here.
func (c Config) certificates(s pgconf.Security) bool { return c.TLS && s.Certificates() }

// InstallTLS puts certificates in place, readable by PostgreSQL's account only, and reports whether one changed. New connections go by
// them; a running server needs a Reload for its own and for whom it trusts. Epochs that are followed get the new certificate too.
func (m *Manager) InstallTLS(f TLSFiles) (changed bool, err error) {
	m.localMu.Lock() // a promise made meanwhile deletes what this must not bring back
	defer m.localMu.Unlock()
	if err := errors.Join(m.makeRunDirs(), m.makeDir(m.cfg.tlsDir(), 0o700)); err != nil {
		return false, fmt.Errorf("install certificates: %w", err)
	}
	t := m.cfg.tls()
	for _, x := range []struct {
		path string
		pem  []byte
	}{
		// Trust comes first, and a key before its certificate: a reader in between finds a pair that does not fit and tries again.
		{t.CAFile, f.CA},
		{t.CRLFile, f.CRL},
		{t.Server.Key, f.ServerKey},
		{t.Server.Cert, f.ServerCert},
		{t.Superuser.Key, f.SuperuserKey},
		{t.Superuser.Cert, f.SuperuserCert},
		{t.Replication.Key, f.ReplicationKey},
		{t.Replication.Cert, f.ReplicationCert},
	} {
		if x.path == "" {
			continue
		}
		one, err := m.replaceIfChanged(x.path, x.pem, 0o600)
		if err != nil {
			return changed, fmt.Errorf("install certificates: %w", err)
		}
		changed = changed || one
	}
	return changed, m.refreshCredentials()
}

// refreshCredentials gives the new certificate to the epochs that have one.
func (m *Manager) refreshCredentials() error {
	entries, err := os.ReadDir(m.cfg.passDir())
	if err != nil {
		return fmt.Errorf("install certificates: %w", err)
	}
	for _, e := range entries {
		var of fsm.Epoch
		if n, _ := fmt.Sscanf(e.Name(), "e%d_%d", &of.Inc, &of.N); n != 2 || e.Name() != of.Suffix()+certSuffix {
			continue
		}
		if err := m.copyPair(m.cfg.tls().Replication, epochPair(filepath.Join(m.cfg.passDir(), of.Suffix()))); err != nil {
			return fmt.Errorf("install certificates: %w", err)
		}
	}
	return nil
}

// TLS reads back what is installed; nothing is no error.
func (m *Manager) TLS() (f TLSFiles, err error) {
	t := m.cfg.tls()
	for path, into := range map[string]*[]byte{
		t.CAFile: &f.CA, t.CRLFile: &f.CRL, t.Server.Key: &f.ServerKey, t.Server.Cert: &f.ServerCert, t.Superuser.Key: &f.SuperuserKey,
		t.Superuser.Cert: &f.SuperuserCert, t.Replication.Key: &f.ReplicationKey, t.Replication.Cert: &f.ReplicationCert,
	} {
		if path == "" {
			continue
		}
		if *into, err = os.ReadFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return f, fmt.Errorf("read the installed certificates: %w", err)
		}
	}
	return f, nil
}

// epochPair is the certificate that goes with the password file of an epoch.
func epochPair(passFile string) pgconf.KeyPair {
	return pgconf.KeyPair{Cert: passFile + certSuffix, Key: passFile + keySuffix}
}

func (m *Manager) copyPair(from, to pgconf.KeyPair) error {
	for _, f := range []struct{ from, to string }{{from.Key, to.Key}, {from.Cert, to.Cert}} {
		b, err := os.ReadFile(f.from)
		if err != nil {
			return fmt.Errorf("read the replication certificate: %w", err)
		}
		if _, err := m.replaceIfChanged(f.to, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}
