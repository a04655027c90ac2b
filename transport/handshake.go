package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
)

// Kind is the protocol spoken on a connection.
type Kind string

// The kinds that share a node's port. All but KindJoin need a client certificate.
const (
	KindRaft   Kind = "raft"
	KindRPC    Kind = "rpc"
	KindGossip Kind = "gossip"
	KindJoin   Kind = "join"
)

// Kinds lists every kind.
func Kinds() []Kind { return []Kind{KindRaft, KindRPC, KindGossip, KindJoin} }

// A dialer offers these beside the protocol it wants, so that a server can refuse it with the reason. They are never spoken: either
// side ends the handshake once one of them is chosen.
const (
	alpnForeign     = "matriarch/refused/cluster"
	alpnIncarnation = "matriarch/refused/incarnation"
	alpnJoin        = "matriarch/join/1"
)

// alpn is the ALPN protocol that carries kind within one incarnation of one cluster.
func alpn(k Kind, clusterID string, incarnation uint64) string {
	return "matriarch/" + string(k) + "/" + clusterID + "/" + strconv.FormatUint(incarnation, 10)
}

// After the handshake the server says whether it takes the connection: one byte, and after refusal a length byte and a text.
// Without it a TLS 1.3 client learns only at its first read that its certificate was refused.
const (
	welcome = 'M'
	refusal = 'R'
)

func writeWelcome(w io.Writer) error {
	_, err := w.Write([]byte{welcome})
	return err
}

func writeRefusal(w io.Writer, why string) {
	why = why[:min(len(why), 255)]
	_, _ = w.Write(append([]byte{refusal, byte(len(why))}, why...)) // the connection is given up either way
}

func readWelcome(r io.Reader) error {
	var b [1]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	switch b[0] {
	case welcome:
		return nil
	case refusal:
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		text := make([]byte, b[0])
		if _, err := io.ReadFull(r, text); err != nil {
			return err
		}
		return fmt.Errorf("%w: %s", ErrRefused, strings.ToValidUTF8(string(text), "?"))
	}
	return fmt.Errorf("%w: unexpected answer: is a matriarch node listening there?", ErrRefused)
}

// admission is the server's judgement of one handshake.
type admission struct {
	id   *NodeTLS
	kind Kind
	peer Peer
	why  error // set when the handshake is refused although TLS would allow it
}

func (a *admission) tlsConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: a.choose}
}

// choose picks protocol and certificate rules by what the client offers.
func (a *admission) choose(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	m, inc := a.id.cur.Load(), a.id.Incarnation()
	c := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, Certificates: []tls.Certificate{m.leaf}}
	for _, offer := range hello.SupportedProtos {
		if offer == alpnJoin {
			a.kind = KindJoin
			c.Certificates = []tls.Certificate{m.chain}
			c.NextProtos = []string{alpnJoin}
			return c, nil
		}
		for _, k := range []Kind{KindRaft, KindRPC, KindGossip} {
			if offer == alpn(k, m.self.ClusterID, inc) {
				a.kind = k
				c.NextProtos = []string{offer}
				c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, m.roots
				c.VerifyConnection = func(cs tls.ConnectionState) (err error) {
					a.peer, err = m.verify(cs, x509.ExtKeyUsageClientAuth)
					return err
				}
				return c, nil
			}
		}
	}
	var refuse string
	refuse, a.why = judge(hello.SupportedProtos, m.self.ClusterID, inc)
	if refuse == "" {
		return nil, a.why
	}
	c.NextProtos = []string{refuse}
	c.VerifyConnection = func(tls.ConnectionState) error { return a.why }
	return c, nil
}

// judge says why none of the offers fits, and the protocol that tells the dialer.
func judge(offers []string, clusterID string, incarnation uint64) (string, error) {
	for _, offer := range offers {
		part := strings.Split(offer, "/")
		if len(part) != 4 || part[0] != "matriarch" {
			continue
		}
		if part[2] != clusterID {
			return alpnForeign, fmt.Errorf("%w: it asks for cluster %q, ours is %s", ErrForeignCluster, part[2], clusterID)
		}
		if part[3] != strconv.FormatUint(incarnation, 10) {
			return alpnIncarnation, fmt.Errorf("%w: it asks for incarnation %q, ours is %d: after a recovery the older side joins again",
				ErrOtherIncarnation, part[3], incarnation)
		}
	}
	return "", errNotMatriarch
}

var errNotMatriarch = errors.New("client does not speak a matriarch protocol")

// explain turns what a dialer's handshake met into an error that names the likely cause.
func (m *material) explain(err error, incarnation uint64) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		for _, gone := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
			if errors.Is(err, gone) {
				return fmt.Errorf("%w: it closed the connection in the handshake (%w): its log says why", ErrRefused, err)
			}
		}
		return err
	}
	if strings.Contains(op.Err.Error(), "no application protocol") {
		return fmt.Errorf("%w: it belongs to another cluster or another incarnation (ours is %d of %s), or is no matriarch node",
			ErrRefused, incarnation, m.self.ClusterID)
	}
	return fmt.Errorf("%w: %w: is this node's certificate expired, or from another cluster? its log says more", ErrRefused, op.Err)
}
