package transport

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"
)

const (
	// CALifetime is how long a new CA is valid.
	CALifetime = 10 * 365 * 24 * time.Hour
	// NodeLifetime is how long a node certificate is valid unless CA.NodeLifetime says otherwise.
	NodeLifetime = 365 * 24 * time.Hour
	// backdate lets a host whose clock is a little behind use a certificate at once.
	backdate = time.Hour

	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY"
	pemCSR  = "CERTIFICATE REQUEST"
)

// CA signs the node certificates of one cluster. It is immutable but for NodeLifetime, which is set before use.
type CA struct {
	// NodeLifetime is the validity of certificates signed from now on; 0 means the constant NodeLifetime.
	NodeLifetime time.Duration

	clusterID string
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
}

// NewCA makes the CA of a new cluster, valid from an hour before now.
func NewCA(clusterID string, now time.Time) (*CA, error) {
	if err := checkID("cluster id", clusterID); err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: "Matriarch CA " + clusterID},
		URIs:                  []*url.URL{{Scheme: "matriarch", Host: clusterID, Path: "/ca"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(CALifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	return &CA{clusterID: clusterID, cert: cert, key: key}, nil
}

// LoadCA reads what CertPEM and KeyPEM wrote. It fails when they do not belong together or are no CA of this program.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	certs, err := parseCerts(certPEM)
	if err != nil {
		return nil, fmt.Errorf("load CA certificate: %w", err)
	}
	cert := certs[0]
	if !cert.IsCA || len(cert.URIs) != 1 || cert.URIs[0].Scheme != "matriarch" || cert.URIs[0].Path != "/ca" {
		return nil, errors.New("load CA certificate: this certificate is not a cluster's CA: check the file")
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("load CA key: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("load CA: key and certificate do not belong together: take both files from one node")
	}
	return &CA{clusterID: cert.URIs[0].Host, cert: cert, key: key}, nil
}

// ClusterID is the cluster this CA signs for.
func (c *CA) ClusterID() string { return c.clusterID }

// CertPEM is the CA's public certificate.
func (c *CA) CertPEM() []byte { return encodePEM(pemCert, c.cert.Raw) }

// KeyPEM is the CA's private key: a secret, for files of mode 0600 and for members only.
func (c *CA) KeyPEM() ([]byte, error) { return encodeKey(c.key) }

// Fingerprint is what join tokens carry: "sha256:" and 64 hexadecimal digits over the certificate.
func (c *CA) Fingerprint() string { return fingerprint(c.cert.Raw) }

// SignCSR signs a node certificate. It takes only the public key from the request; who the node is (UUID, name, addresses) is the
// caller's decision.
func (c *CA) SignCSR(csrPEM []byte, nodeID, name string, ips []net.IP, now time.Time) (certPEM []byte, err error) {
	pub, err := csrKey(csrPEM)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", name, err)
	}
	if err := errors.Join(checkID("node id", nodeID), checkID("node name", name)); err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: nodeSerial(nodeID),
		Subject:      pkix.Name{CommonName: name},
		URIs:         []*url.URL{nodeURI(c.clusterID, nodeID)},
		DNSNames:     []string{name, nodeID},
		IPAddresses:  ips,
		NotBefore:    now.Add(-backdate),
		NotAfter:     c.end(now),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, pub, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", name, err)
	}
	return encodePEM(pemCert, der), nil
}

// NewKeyAndCSR makes a node's private key and the request that a CA signs. The key never leaves the node.
func NewKeyAndCSR() (keyPEM, csrPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make node key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	keyPEM, err = encodeKey(key)
	return keyPEM, encodePEM(pemCSR, der), err
}

// Fingerprint is the fingerprint of the first certificate in certPEM, as CA.Fingerprint writes it.
func Fingerprint(certPEM []byte) (string, error) {
	certs, err := parseCerts(certPEM)
	if err != nil {
		return "", fmt.Errorf("fingerprint: %w", err)
	}
	return fingerprint(certs[0].Raw), nil
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// csrKey returns the public key of a request whose signature proves that the sender holds the private one.
func csrKey(csrPEM []byte) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != pemCSR {
		return nil, errors.New("no certificate request in the PEM text")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check certificate request: %w", err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("certificate request holds another key than ECDSA P-256")
	}
	return pub, nil
}

// checkID keeps names safe inside certificates, URIs and ALPN strings.
func checkID(what, s string) error {
	if s == "" || len(s) > 64 {
		return fmt.Errorf("%s %q: want 1 to 64 characters", what, s)
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
		default:
			return fmt.Errorf("%s %q: only letters, digits, dash, underscore and dot are allowed", what, s)
		}
	}
	return nil
}

func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[0] &= 0x7f    // a serial is positive
	return new(big.Int).SetBytes(b[:])
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return encodePEM(pemKey, der), nil
}

func parseKey(keyPEM []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil || block.Type != pemKey {
		return nil, errors.New("no private key in the PEM text")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse private key: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("private key is not ECDSA")
	}
	return key, nil
}

// parseCerts returns the certificates of a bundle, at least one.
func parseCerts(certPEM []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := certPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(certs) == 0 || len(bytes.TrimSpace(rest)) > 0 {
				return nil, errors.New("no certificate in the PEM text, or rubbish after it")
			}
			return certs, nil
		}
		if block.Type != pemCert {
			return nil, fmt.Errorf("PEM block %q where a certificate belongs", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		certs = append(certs, c)
	}
}
