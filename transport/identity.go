package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Why a handshake fails. Dial errors wrap them; each message names the remedy.
var (
	ErrForeignCluster   = errors.New("peer belongs to another cluster")
	ErrOtherIncarnation = errors.New("peer belongs to another incarnation of this cluster")
	ErrOtherNode        = errors.New("another node answers at this address")
	ErrUntrusted        = errors.New("certificate is not valid under this cluster's CA")
	ErrOtherCA          = errors.New("another CA has signed it")
	ErrRefused          = errors.New("peer refused the connection")
)

// Peer is who is at the other end, taken from its verified certificate.
type Peer struct {
	ClusterID string
	NodeID    string
}

// NodeTLS is a node's identity and whom it trusts. Everything in it can be swapped while connections are made; those already open
// keep what they were made with. Safe for concurrent use.
type NodeTLS struct {
	cur         atomic.Pointer[material]
	incarnation atomic.Uint64
}

// material is one immutable set of certificates.
type material struct {
	self  Peer
	leaf  tls.Certificate
	chain tls.Certificate // leaf and its CA: a joining host has no CA yet
	roots *x509.CertPool
}

// NewNodeTLS builds an identity from a signed certificate, its key and one or more CA certificates (several while a CA is being
// replaced). The certificate must be signed by one of them and name cluster and node.
func NewNodeTLS(certPEM, keyPEM, caPEM []byte, incarnation uint64) (*NodeTLS, error) {
	n := &NodeTLS{}
	if err := n.Swap(certPEM, keyPEM, caPEM); err != nil {
		return nil, err
	}
	n.incarnation.Store(incarnation)
	return n, nil
}

// Swap replaces certificate, key and trusted CAs for all later handshakes. Cluster and node must stay the same.
// An expired certificate is accepted here: the peers refuse it, and a node must be able to start in order to renew it.
func (n *NodeTLS) Swap(certPEM, keyPEM, caPEM []byte) error {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("load node certificate: %w", err)
	}
	cas, err := parseCerts(caPEM)
	if err != nil {
		return fmt.Errorf("load CA certificate: %w", err)
	}
	self, err := peerOfCert(pair.Leaf)
	if err != nil {
		return fmt.Errorf("load node certificate: %w", err)
	}
	if old := n.cur.Load(); old != nil && old.self != self {
		return fmt.Errorf("load node certificate: it names node %s of cluster %s, this is node %s of cluster %s",
			self.NodeID, self.ClusterID, old.self.NodeID, old.self.ClusterID)
	}
	m := &material{self: self, leaf: pair, roots: x509.NewCertPool()}
	for _, ca := range cas {
		m.roots.AddCert(ca)
		if pair.Leaf.CheckSignatureFrom(ca) == nil {
			m.chain = pair
			m.chain.Certificate = [][]byte{pair.Leaf.Raw, ca.Raw}
		}
	}
	if m.chain.Certificate == nil {
		return errors.New("load node certificate: it is not signed by the given CA: take both from one join")
	}
	n.cur.Store(m)
	return nil
}

// Self is this node as its peers see it.
func (n *NodeTLS) Self() Peer { return n.cur.Load().self }

// Expires is when the current certificate ends.
func (n *NodeTLS) Expires() time.Time { return n.cur.Load().leaf.Leaf.NotAfter }

// Incarnation is the one that handshakes demand now.
func (n *NodeTLS) Incarnation() uint64 { return n.incarnation.Load() }

// SetIncarnation changes what later handshakes demand. Connections made before stay open: close the Mux and the Client as well.
func (n *NodeTLS) SetIncarnation(i uint64) { n.incarnation.Store(i) }

// verify checks the other side's chain against the CAs and the cluster, without any host name.
func (m *material) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage) (Peer, error) {
	leaf, err := verifyChain(cs.PeerCertificates, m.roots, usage)
	if err != nil {
		return Peer{}, err
	}
	p, err := peerOfCert(leaf)
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if p.ClusterID != m.self.ClusterID {
		return Peer{}, fmt.Errorf("%w: its certificate names cluster %s, ours is %s: check the address", ErrForeignCluster, p.ClusterID, m.self.ClusterID)
	}
	return p, nil
}

func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) (*x509.Certificate, error) {
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w: none was shown", ErrUntrusted)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{usage}})
	if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
		return nil, fmt.Errorf("%w: %w: %w: check the address; if the CA was replaced while one of the two nodes was away, that one joins again (docs/operations.md, certificates)", ErrUntrusted, ErrOtherCA, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w: check the address and both hosts' clocks", ErrUntrusted, err)
	}
	return certs[0], nil
}

func nodeURI(clusterID, nodeID string) *url.URL {
	return &url.URL{Scheme: "matriarch", Host: clusterID, Path: "/node/" + nodeID}
}

// peerOfCert reads the one URI that makes a certificate a node's.
func peerOfCert(c *x509.Certificate) (Peer, error) {
	if c.IsCA || len(c.URIs) != 1 || c.URIs[0].Scheme != "matriarch" {
		return Peer{}, errors.New("certificate does not belong to a node: it carries no matriarch URI")
	}
	id, ok := strings.CutPrefix(c.URIs[0].Path, "/node/")
	if !ok || id == "" || strings.Contains(id, "/") || c.URIs[0].Host == "" {
		return Peer{}, fmt.Errorf("certificate does not belong to a node: URI %s", c.URIs[0])
	}
	return Peer{ClusterID: c.URIs[0].Host, NodeID: id}, nil
}

// NodeOf tells which node a certificate of a cluster was issued to, be it the node's own or one for its PostgreSQL; empty: none.
func NodeOf(c *x509.Certificate) (nodeID string) {
	for _, u := range c.URIs {
		if u.Scheme != "matriarch" {
			continue
		}
		for _, kind := range []string{"/node/", "/postgres/"} {
			if id, ok := strings.CutPrefix(u.Path, kind); ok {
				return id
			}
		}
	}
	return ""
}
