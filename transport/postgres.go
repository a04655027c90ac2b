package transport

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"
)

// PostgresCert describes a certificate for PostgreSQL: a server's, or with Role a client's. It opens no peer port.
type PostgresCert struct {
	NodeID string
	Role   string   // database role that the client logs in as; empty: a server
	Hosts  []string // names and IPs by which clients reach the server
}

// IssuePostgres makes a key and a certificate, valid from an hour before now for CA.NodeLifetime.
func (c *CA) IssuePostgres(p PostgresCert, now time.Time) (certPEM, keyPEM []byte, err error) {
	if err := checkID("node id", p.NodeID); err != nil {
		return nil, nil, fmt.Errorf("issue a certificate for PostgreSQL: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key for PostgreSQL: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: nodeSerial(p.NodeID),
		Subject:      pkix.Name{CommonName: p.Role},
		URIs:         []*url.URL{{Scheme: "matriarch", Host: c.clusterID, Path: "/postgres/" + p.NodeID}},
		NotBefore:    now.Add(-backdate),
		NotAfter:     c.end(now),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if p.Role == "" {
		tmpl.Subject.CommonName = p.NodeID
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		for _, h := range p.Hosts {
			if ip := net.ParseIP(h); ip != nil {
				tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
			}
			tmpl.DNSNames = append(tmpl.DNSNames, h) // the IPs too: libpq 14 looks for them here only
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, nil, fmt.Errorf("issue a certificate for PostgreSQL: %w", err)
	}
	keyPEM, err = encodeKey(key)
	return encodePEM(pemCert, der), keyPEM, err
}

// nodeSerial names the node. All its certificates share it, so that whoever has the CA's key can revoke them without a register of what
// was ever issued.
func nodeSerial(nodeID string) *big.Int {
	sum := sha256.Sum256([]byte("matriarch node " + nodeID))
	sum[0] = sum[0]&0x7f | 0x40 // positive, and of one length
	return new(big.Int).SetBytes(sum[:16])
}

// end is when a certificate signed now ends.
func (c *CA) end(now time.Time) time.Time {
	life := c.NodeLifetime
	if life == 0 {
		life = NodeLifetime
	}
	end := now.Add(life)
	if end.After(c.cert.NotAfter) {
		end = c.cert.NotAfter
	}
	return end
}

// RevokePostgres signs the list of nodes whose certificates for PostgreSQL count no more. It is valid as long as the CA: it is made
// anew with every removal, and an old one must not lock everybody out.
func (c *CA) RevokePostgres(nodeIDs []string, now time.Time) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(now.UnixMilli()), ThisUpdate: now.Add(-backdate), NextUpdate: c.cert.NotAfter}
	for _, id := range nodeIDs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: nodeSerial(id), RevocationTime: now})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign the revocation list: %w", err)
	}
	return encodePEM(pemCRL, der), nil
}

const pemCRL = "X509 CRL"

// RevokedAre reports whether the lists in crlPEM are those of the given CAs, one each, and revoke these nodes and nobody else.
func RevokedAre(crlPEM []byte, nodeIDs []string, cas ...*CA) bool {
	want := make([]string, 0, len(nodeIDs))
	for _, id := range nodeIDs {
		want = append(want, nodeSerial(id).String())
	}
	slices.Sort(want)
	for _, ca := range cas {
		block, rest := pem.Decode(crlPEM)
		if block == nil || block.Type != pemCRL {
			return false
		}
		crlPEM = rest
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil || list.CheckSignatureFrom(ca.cert) != nil {
			return false
		}
		have := make([]string, 0, len(list.RevokedCertificateEntries))
		for _, e := range list.RevokedCertificateEntries {
			have = append(have, e.SerialNumber.String())
		}
		slices.Sort(have)
		if !slices.Equal(have, want) {
			return false
		}
	}
	return len(bytes.TrimSpace(crlPEM)) == 0
}

// Certificate is what people and renewals need to know of one.
type Certificate struct {
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint"`
	Issuer      string    `json:"issuer"` // fingerprint of the CA among those given; empty: none of them
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Hosts       []string  `json:"hosts,omitempty"`
}

// Due is when a certificate of ours is renewed: after two thirds of its life.
func (c Certificate) Due() time.Time {
	made := c.NotBefore.Add(backdate)
	return made.Add(c.NotAfter.Sub(made) * 2 / 3)
}

// Describe reads the first certificate in certPEM and finds who of the CAs in caPEM signed it.
func Describe(certPEM, caPEM []byte) (Certificate, error) {
	certs, err := parseCerts(certPEM)
	if err != nil {
		return Certificate{}, err
	}
	c := certs[0]
	out := Certificate{
		Subject: c.Subject.CommonName, Fingerprint: fingerprint(c.Raw), NotBefore: c.NotBefore, NotAfter: c.NotAfter, Hosts: slices.Clone(c.DNSNames),
	}
	for _, ip := range c.IPAddresses {
		out.Hosts = append(out.Hosts, ip.String())
	}
	slices.Sort(out.Hosts)
	out.Hosts = slices.Compact(out.Hosts)
	if len(caPEM) == 0 {
		return out, nil
	}
	cas, err := parseCerts(caPEM)
	if err != nil {
		return Certificate{}, err
	}
	for _, ca := range cas {
		if c.CheckSignatureFrom(ca) == nil {
			out.Issuer = fingerprint(ca.Raw)
		}
	}
	return out, nil
}

// CheckPair reports why a certificate and a key, of any kind that TLS knows, do not make a pair.
func CheckPair(certPEM, keyPEM []byte) error {
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return fmt.Errorf("key and certificate are no pair: %w", err)
	}
	return nil
}

// Fingerprints are those of all certificates of a bundle, in its order.
func Fingerprints(bundle []byte) ([]string, error) {
	certs, err := parseCerts(bundle)
	if err != nil {
		return nil, fmt.Errorf("fingerprint: %w", err)
	}
	out := make([]string, 0, len(certs))
	for _, c := range certs {
		out = append(out, fingerprint(c.Raw))
	}
	return out, nil
}
