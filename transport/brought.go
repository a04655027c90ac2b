package transport

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"
)

// CheckServer reports why clients that trust these CAs, as libpq does with verify-full, would not take a server's certificate under
// this name or address. The certificate comes first in certPEM, then those between it and a CA.
func CheckServer(certPEM, caPEM []byte, host string, now time.Time) error {
	chain, err := parseCerts(certPEM)
	if err != nil {
		return err
	}
	leaf := chain[0]
	if err := CheckTime(leaf, now); err != nil {
		return err
	}
	cas, err := parseCerts(caPEM)
	if err != nil {
		return err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, ca := range cas {
		roots.AddCert(ca)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return fmt.Errorf("no CA that the nodes trust has signed it (%w): name its CA in certificates.ca_file, on all nodes", err)
	}
	if !names(leaf, host) {
		return fmt.Errorf("it does not name %s, where the other nodes reach this server", host)
	}
	return nil
}

// names follows libpq, which knows IPs among the DNS names too, and the common name where there is nothing else.
func names(c *x509.Certificate, host string) bool {
	return c.VerifyHostname(host) == nil || slices.Contains(c.DNSNames, host) ||
		len(c.DNSNames)+len(c.IPAddresses) == 0 && c.Subject.CommonName == host
}

// CheckTime reports why a certificate is not valid now.
func CheckTime(c *x509.Certificate, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("it expired at %s", c.NotAfter.Format(time.RFC3339))
	case now.Before(c.NotBefore):
		return fmt.Errorf("it is valid from %s on only", c.NotBefore.Format(time.RFC3339))
	}
	return nil
}

// CertificatesIn leaves nothing but the certificates of a file, which may hold comments and a key as well.
func CertificatesIn(file []byte) []byte {
	var out bytes.Buffer
	for block, rest := pem.Decode(file); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == pemCert {
			out.Write(encodePEM(pemCert, block.Bytes))
		}
	}
	return out.Bytes()
}

// CheckCAs reports why a bundle is none of CAs that can be trusted now.
func CheckCAs(caPEM []byte, now time.Time) error {
	cas, err := parseCerts(caPEM)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range cas {
		if !c.IsCA {
			return fmt.Errorf("the certificate of %q is no CA's", c.Subject.CommonName)
		}
		errs = append(errs, CheckTime(c, now))
	}
	if !slices.Contains(errs, nil) { // one that has run out beside its successor does no harm
		return errors.Join(errs...)
	}
	return nil
}

// Foreign are the CAs of a bundle that are no cluster's: the operator brought them.
func Foreign(bundle []byte) []byte {
	cas, err := parseCerts(bundle)
	if err != nil {
		return nil
	}
	var out bytes.Buffer
	for _, c := range cas {
		if !slices.ContainsFunc(c.URIs, func(u *url.URL) bool { return u.Scheme == "matriarch" }) {
			out.Write(encodePEM(pemCert, c.Raw))
		}
	}
	return out.Bytes()
}
