package main

import (
	"context"
	"crypto/x509"
	"time"

	"matriarch/fsm"
	"matriarch/transport"
)

// callRemoved asks a node whether the caller was taken out.
const callRemoved = "removed"

type removedAnswer struct {
	Removed bool `json:"removed"`
}

// tellRemoved answers a node whether it was taken out for good. Once true that stays true, so that any copy of the state will do.
func (n *node) tellRemoved(_ context.Context, from transport.Peer, _ struct{}) (removedAnswer, error) {
	_, gone := n.consensus.State().Removed[fsm.NodeID(from.NodeID)]
	return removedAnswer{gone}, nil
}

// askEvery is how often a node without the cluster's state asks whether it was removed.
const askEvery = 2 * time.Second

// revoked reports whether a certificate belongs to a node that was taken out for good. Where api.client_ca_file is the cluster's own CA,
// nothing else would keep it from being a credential.
func (n *node) revoked(c *x509.Certificate) bool {
	_, gone := n.consensus.State().Removed[fsm.NodeID(transport.NodeOf(c))]
	return gone
}

// learnRemoval asks the nodes known from before, until this one has the state: a node removed while it was away gets none.
func (n *node) learnRemoval(ctx context.Context) error {
	t := time.NewTicker(askEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if _, member := n.consensus.State().Nodes[n.id.NodeID]; member {
			return nil
		}
		for id, addr := range n.seeds() {
			if id != n.id.NodeID && n.removedBy(ctx, id, addr) {
				n.agent.Removed()
				return nil
			}
		}
	}
}

func (n *node) removedBy(ctx context.Context, id fsm.NodeID, addr string) bool {
	cctx, cancel := context.WithTimeout(ctx, askEvery)
	defer cancel()
	var ans removedAnswer
	return n.client.Call(cctx, addr, string(id), callRemoved, struct{}{}, &ans) == nil && ans.Removed
}
