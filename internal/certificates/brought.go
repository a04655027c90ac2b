package certificates

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"matriarch/pgmanager"
	"matriarch/transport"
)

// files are what the operator brings: a server's certificate with its key, none where the server shows one of ours, and CAs that are
// trusted beside the cluster's.
type files struct{ cert, key, cas []byte }

// brought is what of the operator's is to be used, beside these CAs of the cluster. What is wrong with his files is refused, and then
// it is what was in use before. They are judged together: a server never shows what its own node would not trust.
func (k *Keeper) brought(installed pgmanager.TLSFiles, cluster []byte, now time.Time) (use files, refused error) {
	before := files{installed.ServerCert, installed.ServerKey, transport.Foreign(installed.CA)}
	cas, caErr := k.broughtCAs(now)
	if caErr != nil {
		cas, caErr = before.cas, fmt.Errorf("certificates.ca_file: %w; what was in use before stays", caErr)
	}
	if k.cfg.Own.CertFile == "" {
		return files{cas: cas}, caErr
	}
	trusted := func(cas []byte) []byte { return bytes.Join([][]byte{cluster, cas}, nil) }
	cert, key, err := k.broughtPair(trusted(cas), now)
	if err == nil {
		return files{cert, key, cas}, caErr
	}
	refused = errors.Join(caErr, fmt.Errorf("certificates.cert_file and key_file: %w; what was in use before stays", err))
	if c, err := transport.Describe(before.cert, cluster); err != nil || c.Issuer != "" {
		return files{cas: cas}, refused
	}
	if transport.CheckServer(before.cert, trusted(cas), k.cfg.Host, now) != nil {
		cas = before.cas
	}
	return files{before.cert, before.key, cas}, refused
}

func (k *Keeper) broughtCAs(now time.Time) ([]byte, error) {
	if k.cfg.Own.CAFile == "" {
		return nil, nil
	}
	cas, err := os.ReadFile(k.cfg.Own.CAFile)
	if err != nil {
		return nil, err
	}
	cas = transport.CertificatesIn(cas)
	return cas, transport.CheckCAs(cas, now)
}

func (k *Keeper) broughtPair(cas []byte, now time.Time) (cert, key []byte, err error) {
	if cert, err = os.ReadFile(k.cfg.Own.CertFile); err != nil {
		return nil, nil, err
	}
	if key, err = os.ReadFile(k.cfg.Own.KeyFile); err != nil {
		return nil, nil, err
	}
	if err := transport.CheckPair(cert, key); err != nil { // or half of it was replaced so far
		return nil, nil, err
	}
	cert = transport.CertificatesIn(cert)
	return cert, key, transport.CheckServer(cert, cas, k.cfg.Host, now)
}
