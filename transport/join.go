package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// JoinProtocol is the version of JoinRequest and JoinResponse that this program speaks.
const JoinProtocol = 1

const (
	maxJoinRequest = 64 << 10 // bytes
	maxJoinHops    = 3        // the address in the command line, a leader, and one that has changed meanwhile
	joinTimeout    = 30 * time.Second
)

// ErrFingerprint says that the server's CA is not the one the token was made for.
var ErrFingerprint = errors.New("fingerprint mismatch")

// Addresses are where a node is reached, each host:port.
type Addresses struct {
	Peer string `json:"peer"`
	PG   string `json:"pg"`
	API  string `json:"api"`
}

// JoinRequest is what a host tells to become a node. Join fills TokenID, Secret and Protocol.
type JoinRequest struct {
	TokenID   string            `json:"token_id"`
	Secret    string            `json:"secret"`
	NodeID    string            `json:"node_id"`
	Name      string            `json:"name"`
	CSR       []byte            `json:"csr"` // PEM
	Group     int               `json:"group"`
	Addresses Addresses         `json:"addresses"`
	Zone      string            `json:"zone,omitempty"`
	Tags      map[string]string `json:"tags,omitempty"`
	Version   string            `json:"version"`
	Protocol  int               `json:"protocol"`
	Commands  int               `json:"commands,omitempty"`  // the newest version of the commands that its program knows; 0: 1
	Now       time.Time         `json:"now"`                 // the host's clock
	PGVersion int               `json:"pg_version"`          // major, 0 without PostgreSQL
	SystemID  string            `json:"system_id,omitempty"` // of an existing data directory
	From      string            `json:"-"`                   // remote address as the server sees it
}

// String leaves out the secret.
func (r JoinRequest) String() string {
	return fmt.Sprintf("join of %s (%s) to group %d by token %s", r.Name, r.NodeID, r.Group, r.TokenID)
}

// PeerAddr is a node that the new one may talk to.
type PeerAddr struct {
	NodeID string `json:"node_id"`
	Name   string `json:"name"`
	Addr   string `json:"addr"` // host:port of the peer port
}

// JoinResponse makes a host a member. It holds secrets: files of mode 0600, never a log.
type JoinResponse struct {
	ClusterID   string            `json:"cluster_id"`
	Incarnation uint64            `json:"incarnation"`
	CertPEM     []byte            `json:"cert"`
	CAPEM       []byte            `json:"ca"`
	CAKeyPEM    []byte            `json:"ca_key,omitempty"` // so that any leader can sign
	Secrets     map[string]string `json:"secrets,omitempty"`
	Peers       []PeerAddr        `json:"peers"`
	ServerTime  time.Time         `json:"server_time"`
	Settings    json.RawMessage   `json:"settings,omitempty"`
	Rotation    *Rotation         `json:"rotation,omitempty"` // while the CA is being replaced
}

// Rotation is what else is trusted while a CA is being replaced: the one that will take over, and the one that was replaced.
type Rotation struct {
	NextCA    []byte `json:"next_ca,omitempty"`
	NextCAKey []byte `json:"next_ca_key,omitempty"`
	OldCA     []byte `json:"old_ca,omitempty"`
	OldCAKey  []byte `json:"old_ca_key,omitempty"`
}

// String leaves out all secrets.
func (r JoinResponse) String() string {
	return fmt.Sprintf("membership in cluster %s, incarnation %d", r.ClusterID, r.Incarnation)
}

// JoinServer answers hosts that have a token but no certificate yet.
type JoinServer struct {
	http *http.Server
}

// NewJoinServer makes a server that asks admit. Whatever admit checks first must be the token: the caller is a stranger. A node that
// is not the leader answers &Error{Code: CodeNotLeader, Leader: address}, which the joining host follows.
func NewJoinServer(log *slog.Logger, admit func(context.Context, JoinRequest) (JoinResponse, error)) *JoinServer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e := &endpoint{name: "join", log: log, limit: maxJoinRequest, hide: true}
	e.call = func(ctx context.Context, c net.Conn, body []byte) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, joinTimeout)
		defer cancel()
		req, err := decodeRequest[JoinRequest](body)
		if err != nil {
			return nil, err
		}
		if req.Protocol != JoinProtocol {
			return nil, &Error{
				Code: CodeRefused, Message: fmt.Sprintf("join protocol %d, this cluster speaks %d", req.Protocol, JoinProtocol),
				Hint: "install the cluster's version of matriarch on the new host",
			}
		}
		if c != nil {
			req.From = c.RemoteAddr().String()
		}
		return admit(ctx, req)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /join", e)
	s := newHTTPServer(mux, log)
	s.IdleTimeout = headerTimeout
	return &JoinServer{http: s}
}

// Serve answers on l, normally Mux.Listener(KindJoin), until Close or until l is closed; then it returns nil.
func (s *JoinServer) Serve(l net.Listener) error {
	if err := serve(s.http, l); err != nil {
		return fmt.Errorf("serve join: %w", err)
	}
	return nil
}

// Close ends the server and its connections at once.
func (s *JoinServer) Close() error { return s.http.Close() }

// Join asks the node at addr for membership and follows it to the leader. The secret is sent only to a server whose CA has
// the token's fingerprint. Errors: ErrTokenExpired, ErrFingerprint, ErrRefused, *Error (the cluster's refusal), or the network's.
// Repeating it with the same NodeID is safe as far as the server's admit is idempotent.
func Join(ctx context.Context, network Network, addr string, token Token, req JoinRequest) (JoinResponse, error) {
	if token.Expired(time.Now()) {
		return JoinResponse{}, fmt.Errorf("join: %w at %s (this host's clock says %s): make a new one with matriarch token, or set the clock",
			ErrTokenExpired, time.Unix(token.Expires, 0).UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))
	}
	req.TokenID, req.Secret, req.Protocol = token.ID, token.Secret, JoinProtocol
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	for hop := 1; ; hop++ {
		res, err := joinAt(ctx, network, addr, token, req)
		if err == nil {
			err = checkMembership(res, token)
		}
		e, ok := errors.AsType[*Error](err)
		if ok && e.Code == CodeNotLeader && e.Leader != "" && e.Leader != addr && hop < maxJoinHops {
			addr = e.Leader
			continue
		}
		if err != nil {
			return JoinResponse{}, fmt.Errorf("join at %s: %w", addr, err)
		}
		return res, nil
	}
}

func checkMembership(res JoinResponse, token Token) error {
	fp, err := Fingerprint(res.CAPEM)
	switch {
	case err != nil:
		return fmt.Errorf("read answer: %w", err)
	case fp != token.CAFingerprint || res.ClusterID != token.ClusterID:
		return fmt.Errorf("%w: the answer is of cluster %s with CA %s", ErrFingerprint, res.ClusterID, fp)
	}
	return nil
}

func joinAt(ctx context.Context, network Network, addr string, token Token, req JoinRequest) (res JoinResponse, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return res, fmt.Errorf("encode request: %w", err)
	}
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialJoin(ctx, network, addr, token)
		},
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://join/join", bytes.NewReader(body))
	if err != nil {
		return res, fmt.Errorf("make request: %w", err)
	}
	r, err := tr.RoundTrip(hr)
	if err != nil {
		return res, err
	}
	defer r.Body.Close()
	return res, readReply(r, MaxRequest, &res)
}

func dialJoin(ctx context.Context, network Network, addr string, token Token) (net.Conn, error) {
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{alpnJoin},
		InsecureSkipVerify: true, // VerifyConnection pins the CA by the token's fingerprint
		VerifyConnection:   token.verify,
	}
	c, err := dialTLS(ctx, network, addr, cfg, 0)
	if err != nil {
		m := &material{self: Peer{ClusterID: token.ClusterID}}
		return nil, m.explain(err, 0)
	}
	return c, nil
}

// verify accepts a node certificate of the token's cluster under the CA that the token names.
func (t Token) verify(cs tls.ConnectionState) error {
	roots := x509.NewCertPool()
	shown := "no CA"
	for _, c := range cs.PeerCertificates {
		if !c.IsCA {
			continue
		}
		shown = fingerprint(c.Raw)
		if shown == t.CAFingerprint {
			roots.AddCert(c)
			leaf, err := verifyChain(cs.PeerCertificates, roots, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if p, err := peerOfCert(leaf); err != nil || p.ClusterID != t.ClusterID {
				return fmt.Errorf("%w: check the address", ErrForeignCluster)
			}
			return nil
		}
	}
	return fmt.Errorf("%w: the token names CA %s, the server shows %s: wrong address, a token of another cluster or from before 'matriarch ca rotate', which has to be finished", ErrFingerprint, t.CAFingerprint, shown)
}
