package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"time"
)

// Dialer opens connections to other nodes' Mux. The zero Timeout means 5 s for connection and handshake together.
type Dialer struct {
	Network  Network
	Identity *NodeTLS
	Timeout  time.Duration
}

// Dial connects to addr and speaks kind (not KindJoin). The server must show a certificate of this cluster, and of node expectNodeID
// unless that is empty; host names do not matter. When it returns, the server has accepted us as well.
// Errors: ErrForeignCluster, ErrOtherIncarnation, ErrOtherNode, ErrUntrusted, ErrRefused, or the network's.
func (d *Dialer) Dial(ctx context.Context, kind Kind, addr, expectNodeID string) (net.Conn, error) {
	m, inc := d.Identity.cur.Load(), d.Identity.Incarnation()
	want := alpn(kind, m.self.ClusterID, inc)
	var peer Peer
	cfg := &tls.Config{
		MinVersion:           tls.VersionTLS13,
		NextProtos:           []string{want, alpnForeign, alpnIncarnation},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &m.leaf, nil },
		InsecureSkipVerify:   true, // VerifyConnection checks the chain; peers have no host names
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			peer, err = m.accept(cs, want, expectNodeID, inc)
			return err
		},
	}
	c, err := dialTLS(ctx, d.Network, addr, cfg, d.Timeout)
	if err != nil {
		return nil, fmt.Errorf("dial %s at %s: %w", kind, addr, m.explain(err, inc))
	}
	c.peer, c.known = peer, true
	return c, nil
}

// accept is the dialer's judgement of the server.
func (m *material) accept(cs tls.ConnectionState, want, expectNodeID string, inc uint64) (Peer, error) {
	if cs.NegotiatedProtocol == alpnForeign {
		// Its certificate is another CA's, so this is its word only; it could refuse us in any other way, too.
		return Peer{}, fmt.Errorf("%w: check the address (ours is %s)", ErrForeignCluster, m.self.ClusterID)
	}
	p, err := m.verify(cs, x509.ExtKeyUsageServerAuth)
	switch {
	case err != nil:
		return Peer{}, err
	case cs.NegotiatedProtocol == alpnIncarnation:
		return Peer{}, fmt.Errorf("%w (ours is %d): after a recovery the older side joins again", ErrOtherIncarnation, inc)
	case cs.NegotiatedProtocol != want:
		return Peer{}, fmt.Errorf("%w: it chose protocol %q", ErrRefused, cs.NegotiatedProtocol)
	case expectNodeID != "" && p.NodeID != expectNodeID:
		return Peer{}, fmt.Errorf("%w: want node %s, found %s", ErrOtherNode, expectNodeID, p.NodeID)
	}
	return p, nil
}

// dialTLS connects, shakes hands and waits for the server's word, all until ctx or timeout ends.
func dialTLS(ctx context.Context, network Network, addr string, cfg *tls.Config, timeout time.Duration) (*conn, error) {
	if timeout == 0 {
		timeout = defaultHandshakeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	// One way for deadline and cancellation: whatever read or write is under way ends.
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	t := tls.Client(raw, cfg)
	if err = t.HandshakeContext(context.WithoutCancel(ctx)); err == nil {
		err = readWelcome(t)
	}
	if !stop() {
		err = fmt.Errorf("handshake not finished in time: %w", ctx.Err())
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return &conn{Conn: t, raw: raw}, nil
}
