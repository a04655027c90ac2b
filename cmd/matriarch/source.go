package main

import (
	"context"
	"os"
	"time"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/agent"
)

// source is this node as the command line and the HTTP API see it.
type source struct{ n *node }

// Status implements admin.Source. It does no I/O.
func (s source) Status(context.Context) admin.Status {
	n := s.n
	now := time.Now()
	raft := n.consensus.Status()
	st := admin.Status{
		Node: n.id.NodeID, Name: n.id.Name, Version: version, At: now, State: n.consensus.State(),
		Raft: admin.Raft{
			Leader: raft.Leader, Leads: raft.Leading, State: raftState(raft.Leading, raft.Leader), Term: raft.Term, Applied: raft.Applied,
			Commit: raft.Commit, Suffrage: raft.Suffrage, LastContact: raft.LastContact, SlowestTick: raft.SlowestTick,
		},
		Plans: n.conductor.Plans(), Proxy: n.proxyStats(),
	}
	if raft.Leading {
		st.Metadata = n.conductor.MetadataReport()
		st.Heard = n.heard(st.State)
	}
	fs := n.sentinel.Status()
	st.Self = admin.NewSelf(n.agent.Snapshot(), now, admin.Processes{Agent: os.Getpid(), Sentinel: fs.SentinelPID, PostmasterStarted: fs.StartedAt})
	n.metrics.Raft(raft.Leading, raft.Term, raft.Applied)
	return st
}

func raftState(leading bool, leader fsm.NodeID) string {
	switch {
	case leading:
		return "leader"
	case leader == "":
		return "candidate"
	}
	return "follower"
}

// Submit implements admin.Source.
func (s source) Submit(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	return s.n.consensus.Submit(ctx, c)
}

// heard is how long ago each node was heard of, while this node leads.
func (n *node) heard(s *fsm.State) map[fsm.NodeID]time.Duration {
	l := n.leading.Load()
	if l == nil {
		return nil
	}
	out := map[fsm.NodeID]time.Duration{}
	for id := range s.Nodes {
		if ago, ok := l.Heard(id); ok {
			out[id] = ago
		}
	}
	return out
}

// RestartStandby implements admin.Source.
func (s source) RestartStandby(ctx context.Context) error { return s.n.agent.Restart(ctx) }

// Snapshot implements admin.Source.
func (s source) Snapshot(ctx context.Context) (*fsm.State, error) { return s.n.consensus.Read(ctx) }

// WouldSwitch implements admin.Source.
func (s source) WouldSwitch(ctx context.Context, g fsm.GroupID, to fsm.NodeID) (fsm.NodeID, error) {
	return s.n.wouldSwitch(ctx, g, to)
}

// Reinit implements admin.Source. What takes time to look at is looked at before the node's loop is asked.
func (s source) Reinit(ctx context.Context, from fsm.NodeID) error {
	src, err := agent.CloneSource(s.n.consensus.State(), s.n.id.NodeID, from)
	if err != nil {
		return err
	}
	if err := s.n.postgres.CloneRoom(ctx, src); err != nil {
		return err
	}
	return s.n.agent.Reinit(ctx, src.ID)
}
