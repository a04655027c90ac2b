package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"matriarch/internal/config"
	"matriarch/pgmanager/pgconf"
	"matriarch/transport"
)

// apiTLS reads its files again when they change; own is this node's server certificate.
func apiTLS(a config.API, own pgconf.KeyPair, log *slog.Logger) *tls.Config {
	if a.CertFile != "" {
		own = pgconf.KeyPair{Cert: a.CertFile, Key: a.KeyFile}
	}
	f := &apiFiles{pair: own, ca: a.ClientCAFile, log: log}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.current() }}
}

// apiFiles are the files behind the HTTPS port, looked at in each handshake. What is wrong is refused and logged, and what was in use
// before stays. Only an expired certificate without a better one is shown all the same: its clients then know what is the matter.
type apiFiles struct {
	pair pgconf.KeyPair
	ca   string
	log  *slog.Logger

	mu    sync.Mutex
	of    [3]time.Time // when they were last changed
	bad   bool         // they were refused, and that was said
	ready *tls.Config
}

func (f *apiFiles) current() (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var now [3]time.Time
	for i, path := range []string{f.pair.Cert, f.pair.Key, f.ca} {
		if st, err := os.Stat(path); err == nil {
			now[i] = st.ModTime()
		}
	}
	if f.ready != nil && now == f.of && !f.bad {
		return f.ready, nil
	}
	cfg, expired, err := f.load()
	bad := errors.Join(err, expired)
	if bad != nil && (!f.bad || now != f.of) {
		f.log.Warn("certificate of the HTTP port refused, what was in use before stays", "error", bad)
	}
	f.of, f.bad = now, bad != nil
	switch {
	case bad == nil, err == nil && f.ready == nil:
		f.ready = cfg
	case f.ready == nil:
		return nil, err
	}
	return f.ready, nil
}

// load reads the files; expired says why what they hold should not be used.
func (f *apiFiles) load() (cfg *tls.Config, expired, err error) {
	pair, err := tls.LoadX509KeyPair(f.pair.Cert, f.pair.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("load the certificate of the HTTP port: %w", err)
	}
	if err := transport.CheckTime(pair.Leaf, time.Now()); err != nil {
		expired = fmt.Errorf("load the certificate of the HTTP port from %s: %w", f.pair.Cert, err)
	}
	cfg = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{pair}}
	if f.ca == "" {
		return cfg, expired, nil
	}
	b, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, nil, fmt.Errorf("load api.client_ca_file: %w", err)
	}
	cfg.ClientCAs, cfg.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
	if !cfg.ClientCAs.AppendCertsFromPEM(b) {
		return nil, nil, errors.New("load api.client_ca_file: no certificate in it")
	}
	return cfg, expired, nil
}
