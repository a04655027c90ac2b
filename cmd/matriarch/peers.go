package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"matriarch/consensus"
	"matriarch/fsm"
	"matriarch/internal/identity"
)

// stateChanged runs after every applied entry and must not block.
func (n *node) stateChanged(prev, next *fsm.State) {
	if n.agent != nil {
		n.agent.Changed(prev, next)
	}
	if n.conductor != nil {
		n.conductor.Changed(prev, next)
	}
	if n.roles != nil {
		n.roles.moved()
	}
	if n.certs != nil && len(prev.Removed) != len(next.Removed) {
		n.certs.Look()
	}
	if len(prev.Nodes) != len(next.Nodes) || !slices.Equal(peersOf(prev), peersOf(next)) {
		n.nodesMoved()
	}
	n.observeEvents(prev, next)
}

// nodesMoved has keepPeers look again.
func (n *node) nodesMoved() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func peersOf(s *fsm.State) []identity.Peer {
	var out []identity.Peer
	for _, id := range s.NodeIDs() {
		out = append(out, identity.Peer{ID: id, Name: s.Nodes[id].Name, Addr: s.Nodes[id].Peer})
	}
	return out
}

// keepPeers keeps the list of first contacts fresh, and tells the cluster what this node's configuration says of it.
func (n *node) keepPeers(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.changed:
		}
		s := n.consensus.State()
		if peers := peersOf(s); len(peers) > 0 {
			if err := n.dir.SavePeers(peers); err != nil {
				n.log.Warn("known peers not written", "error", err)
			}
		}
		n.announceSelf(ctx, s)
	}
}

// announceStart tells what the configuration says as soon as the newest state can be read. What an older one says is not enough: this
// node's last run may have left a word at its end.
func (n *node) announceStart(ctx context.Context) error {
	for told := false; !told; {
		s, err := n.consensus.Read(ctx)
		told = err != nil || n.announceSelf(ctx, s) // an error: ctx has ended
	}
	return nil
}

// announceSelf proposes what the configuration says of this node, if the state says otherwise. It answers false if no
// answer came in time.
func (n *node) announceSelf(ctx context.Context, s *fsm.State) bool {
	have, ok := s.Nodes[n.id.NodeID]
	if !ok {
		return true
	}
	want := fsm.Known(nodeOf(n.cfg, n.id.NodeID), s.Cluster.Gate)
	want.Joined, want.Report = have.Joined, have.Report
	want.Tags.NoSync = want.Tags.NoSync || n.leaving.Load()
	if sameNode(have, want) {
		return true
	}
	pctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	res, err := n.consensus.Submit(pctx, fsm.NodePut{Node: want})
	if err != nil || !res.OK {
		n.log.Warn("the cluster did not take what this node's configuration says of it", "reason", res.Reason, "error", err)
	}
	return !errors.Is(err, consensus.ErrNoLeader) && !errors.Is(err, consensus.ErrUnknownOutcome)
}
