package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"time"

	"matriarch/fsm"
	"matriarch/internal/identity"
	"matriarch/transport"
)

// admit decides about a host that wants to join. The token comes first: the caller is a stranger.
func (n *node) admit(ctx context.Context, r transport.JoinRequest) (transport.JoinResponse, error) {
	st := n.consensus.Status()
	if !st.Leading {
		if st.LeaderAddr == "" {
			return transport.JoinResponse{}, &transport.Error{Code: transport.CodeNotLeader, Message: "the cluster has no Raft leader just now", Hint: "try again in some seconds; `matriarch list` on a node shows the leader"}
		}
		return transport.JoinResponse{}, &transport.Error{Code: transport.CodeNotLeader, Message: "another node leads", Leader: st.LeaderAddr}
	}
	s := n.consensus.State()
	if err := checkToken(s, r, time.Now(), n.joins.again(r)); err != nil {
		return transport.JoinResponse{}, err
	}
	if err := checkNewcomer(s, r, time.Now()); err != nil {
		return transport.JoinResponse{}, err
	}
	node := fsm.Node{
		ID: fsm.NodeID(r.NodeID), Name: r.Name, Group: fsm.GroupID(r.Group), Peer: r.Addresses.Peer, Postgres: r.Addresses.PG, API: r.Addresses.API,
		Zone: r.Zone, Tags: tagsFromWire(r.Tags), Version: r.Version, Protocol: r.Commands,
	}
	res, err := n.consensus.Submit(ctx, fsm.Join{Node: node, Token: r.TokenID})
	if err != nil {
		return transport.JoinResponse{}, fmt.Errorf("record the new node: %w", err)
	}
	if !res.OK {
		return transport.JoinResponse{}, refusal("%s", res.Reason)
	}
	n.joins.remember(r)
	return n.welcome(r)
}

// joins remembers whom this node has admitted: a host whose answer was lost may ask once more although its token is used up. Nobody else
// may, or a token that was seen somewhere would for ever be good for the identity of a node that is known.
type joins struct {
	mu sync.Mutex
	of map[string][sha256.Size]byte // request for a certificate, by node
}

// mostJoins bounds what is remembered.
const mostJoins = 1000

func (j *joins) remember(r transport.JoinRequest) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.of == nil || len(j.of) >= mostJoins {
		j.of = map[string][sha256.Size]byte{}
	}
	j.of[r.NodeID] = sha256.Sum256(r.CSR)
}

// again reports whether this very request was admitted before. It is of use only to who has the key that it was signed with.
func (j *joins) again(r transport.JoinRequest) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	was, ok := j.of[r.NodeID]
	return ok && was == sha256.Sum256(r.CSR)
}

func refusal(format string, args ...any) error {
	return &transport.Error{Code: transport.CodeRefused, Message: fmt.Sprintf(format, args...)}
}

func checkToken(s *fsm.State, r transport.JoinRequest, now time.Time, again bool) error {
	t, ok := s.Tokens[r.TokenID]
	switch {
	case !ok || !transport.SecretMatches(r.Secret, t.Hash):
		return refusal("the join token is not known to this cluster: it was revoked or copied wrongly; make one with `matriarch token create` on a node")
	case now.After(t.Expires):
		return refusal("the join token expired at %s: make another with `matriarch token create` on a node", t.Expires.Format(time.RFC3339))
	case t.Uses <= 0 && !again:
		return refusal("the join token is used up: make another with `matriarch token create` on a node")
	}
	return nil
}

// checkNewcomer refuses hosts whose clock or version would make trouble later.
func checkNewcomer(s *fsm.State, r transport.JoinRequest, now time.Time) error {
	skew := now.Sub(r.Now).Abs()
	if limit := s.Cluster.Settings.MaximumClockSkew; skew > limit {
		return refusal("the clock of the new host is %s off (here it is %s, there %s); at most %s is allowed: set it right (chrony, systemd-timesyncd) and join again", skew.Round(time.Millisecond), now.UTC().Format(time.RFC3339), r.Now.UTC().Format(time.RFC3339), limit)
	}
	if ours, theirs := major(version), major(r.Version); ours != theirs && ours != "" && theirs != "" {
		return refusal("the new host runs matriarch %s, the cluster %s: install a version of the same major number", r.Version, version)
	}
	for _, m := range s.Members(fsm.GroupID(r.Group)) {
		if have := m.Report.PGVersion / 10000; have != 0 && r.PGVersion != 0 && have != r.PGVersion {
			return refusal("the new host has PostgreSQL %d, group %d runs %d (%s): a group needs one major version; name the right one with --pg-bin", r.PGVersion, r.Group, have, m.Name)
		}
	}
	return checkData(s, r)
}

// checkData refuses data that is not this group's. A node that is known already may repeat its join with what it made itself.
func checkData(s *fsm.State, r transport.JoinRequest) error {
	_, known := s.Nodes[fsm.NodeID(r.NodeID)]
	id := s.Groups[fsm.GroupID(r.Group)].SystemID
	switch {
	case r.SystemID == "" || r.SystemID == id:
		return nil
	case id != "":
		return refusal("the new host's data directory has system identifier %s, group %d has %s: it belongs to another database cluster; move it away, and this host clones", r.SystemID, r.Group, id)
	case !known:
		return refusal("group %d has no data yet and the new host's data directory holds a database cluster (system identifier %s): move it away, or take it over as a new cluster with `matriarch bootstrap --adopt`", r.Group, r.SystemID)
	}
	return nil
}

// major is the number before the first dot; a development version has none and agrees with every other.
func major(v string) string {
	m, _, ok := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	if !ok {
		return ""
	}
	return m
}

// welcome signs the certificate and hands over what every node has.
func (n *node) welcome(r transport.JoinRequest) (transport.JoinResponse, error) {
	var out transport.JoinResponse
	var ca *transport.CA
	var rot identity.Rotation
	err := n.certs.Hold(func() (err error) {
		if ca, err = n.dir.CA(); err == nil {
			rot, err = n.dir.Rotation()
		}
		return err
	})
	if err != nil {
		return out, err
	}
	cert, err := ca.SignCSR(r.CSR, r.NodeID, r.Name, addresses(r.Addresses.Peer, r.Addresses.PG), time.Now())
	if err != nil {
		return out, refusal("certificate request: %v", err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return out, err
	}
	secrets, err := n.dir.Secrets()
	if err != nil {
		return out, err
	}
	settings, err := accessOf(n.cfg)
	if err != nil {
		return out, err
	}
	s := n.consensus.State()
	out = transport.JoinResponse{
		ClusterID: n.id.ClusterID, Incarnation: s.Cluster.Incarnation, CertPEM: cert, CAPEM: ca.CertPEM(), CAKeyPEM: key, Secrets: secrets, Settings: settings, ServerTime: time.Now(),
	}
	if rot.NextCert != nil || rot.OldCert != nil {
		out.Rotation = &transport.Rotation{NextCA: rot.NextCert, NextCAKey: rot.NextKey, OldCA: rot.OldCert, OldCAKey: rot.OldKey}
	}
	for _, p := range peersOf(s) {
		out.Peers = append(out.Peers, transport.PeerAddr{NodeID: string(p.ID), Name: p.Name, Addr: p.Addr})
	}
	return out, nil
}
