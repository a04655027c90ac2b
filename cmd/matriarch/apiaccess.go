package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"matriarch/internal/api"
	"matriarch/internal/config"
	"matriarch/pgmanager/pgconf"
)

// apiAccess is what the configuration says of the HTTP port.
func apiAccess(a config.API) (api.Access, error) {
	allow, err := api.ParseAllow(a.Allow)
	if err != nil {
		return api.Access{}, fmt.Errorf("api.allow: %w", err)
	}
	return api.Access{
		ReadsClosed: a.Reads == "closed", Writes: a.Writes == "on", Allow: allow, Rate: a.RateLimit,
		Credentials: func() (api.Credentials, error) { return apiCredentials(a) },
	}, nil
}

// shortestToken keeps a token from being guessed.
const shortestToken = 20

func apiCredentials(a config.API) (c api.Credentials, err error) {
	if a.TokenFile != "" {
		if c.Token, err = secretOf(a.TokenFile); err != nil {
			return c, fmt.Errorf("api.token_file: %w", err)
		}
		if len(c.Token) < shortestToken {
			return c, fmt.Errorf("api.token_file: the token has %d characters, at least %d are needed", len(c.Token), shortestToken)
		}
	}
	if a.PasswordFile != "" {
		c.User = a.Username
		if c.Password, err = secretOf(a.PasswordFile); err != nil {
			return c, fmt.Errorf("api.password_file: %w", err)
		}
	}
	return c, nil
}

func secretOf(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", errors.New("the file is empty")
	}
	return s, nil
}

// apiTLS reads its files again when they change; own is this node's server certificate.
func apiTLS(a config.API, own pgconf.KeyPair) *tls.Config {
	if a.CertFile != "" {
		own = pgconf.KeyPair{Cert: a.CertFile, Key: a.KeyFile}
	}
	f := &apiFiles{pair: own, ca: a.ClientCAFile}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.current() }}
}

// apiFiles are the files behind the HTTPS port.
type apiFiles struct {
	pair pgconf.KeyPair
	ca   string

	mu    sync.Mutex
	of    [3]time.Time // when they were last changed
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
	if f.ready != nil && now == f.of {
		return f.ready, nil
	}
	cfg, err := f.load()
	switch {
	case err == nil:
		f.ready, f.of = cfg, now
	case f.ready != nil:
		return f.ready, nil // a pair that is being replaced: what was in use stays
	}
	return cfg, err
}

func (f *apiFiles) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.pair.Cert, f.pair.Key)
	if err != nil {
		return nil, fmt.Errorf("load the certificate of the HTTP port: %w", err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{pair}}
	if f.ca != "" {
		b, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("load api.client_ca_file: %w", err)
		}
		cfg.ClientCAs, cfg.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
		if !cfg.ClientCAs.AppendCertsFromPEM(b) {
			return nil, errors.New("load api.client_ca_file: no certificate in it")
		}
	}
	return cfg, nil
}
