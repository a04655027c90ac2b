package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"syscall"
	"time"

	"matriarch/consensus"
	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
	"matriarch/internal/config"
	"matriarch/internal/obs"
	"matriarch/transport"
)

// control is the control plane as the agent sees it.
type control struct{ *consensus.Node }

func (c control) Keepalive(ctx context.Context, b agent.Beat) (agent.Answer, error) {
	a, err := c.Node.Keepalive(ctx, consensus.Keepalive{Node: b.Node, Instance: b.Instance, Group: b.Group, Epoch: b.Epoch, Report: b.Report})
	return agent.Answer{Held: a.Held, Lease: a.Lease, Index: a.Index, NextIn: a.NextIn, Removed: a.Removed, Present: a.Present}, err
}

// HeardLeader implements agent.Control.
func (c control) HeardLeader() time.Duration { return c.Status().LastContact }

const callWord = "word"

// peers are the other members as the agent sees them.
type peers struct{ n *node }

// Word implements agent.Peers.
func (p peers) Word(ctx context.Context, to fsm.Node, r decide.WordRequest) error {
	err := p.n.client.Call(ctx, to.Peer, string(to.ID), callWord, r, &struct{}{})
	if e, ok := errors.AsType[*transport.Error](err); ok {
		return e // what the member said; the call around it says nothing more
	}
	return err
}

// giveWord answers a primary that has no leader.
func (n *node) giveWord(ctx context.Context, from transport.Peer, r decide.WordRequest) (struct{}, error) {
	if string(r.Holder) != from.NodeID {
		return struct{}{}, &transport.Error{Code: transport.CodeRefused, Message: fmt.Sprintf("node %s asked for a word to node %s", from.NodeID, r.Holder)}
	}
	if err := n.agent.Word(ctx, r); err != nil {
		return struct{}{}, &transport.Error{Code: transport.CodeRefused, Message: err.Error()}
	}
	return struct{}{}, nil
}

// leadership is one term as the conductor sees it.
type leadership struct{ consensus.Leadership }

// Term rises for the life of the databases that it is written into: a restored control plane counts Raft's terms from the beginning, in
// another incarnation. The first incarnation's are Raft's own.
func (l leadership) Term() uint64 {
	return provenTerm(l.State().Cluster.Incarnation, l.Leadership.Term)
}

func provenTerm(incarnation, term uint64) uint64 { return (max(incarnation, 1)-1)<<40 | term }

func (l leadership) Submit(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	return l.Propose(ctx, c)
}

type recruitRequest struct {
	Epoch fsm.Epoch `json:"epoch"`
}

type recruitAnswer struct {
	Recruit decide.Recruit `json:"recruit"`
}

// recruiter asks nodes by RPC, and this one directly.
type recruiter struct{ n *node }

func (r recruiter) Recruit(ctx context.Context, to fsm.Node, e fsm.Epoch) (decide.Recruit, error) {
	if to.ID == r.n.id.NodeID {
		return r.n.agent.Recruit(ctx, e)
	}
	var ans recruitAnswer
	err := r.n.client.Call(ctx, to.Peer, string(to.ID), "recruit", recruitRequest{e}, &ans)
	return ans.Recruit, err
}

const callProbe = "probe"

type probeRequest struct {
	Primary fsm.NodeID `json:"primary"`
}

func (r recruiter) Probe(ctx context.Context, to, primary fsm.Node) (p decide.Probe, err error) {
	if to.ID == r.n.id.NodeID {
		return r.n.probe(ctx, probeRequest{primary.ID})
	}
	err = r.n.client.Call(ctx, to.Peer, string(to.ID), callProbe, probeRequest{primary.ID}, &p)
	return p, err
}

// nodeOf is what the configuration says of this node.
func nodeOf(cfg config.Config, id fsm.NodeID) fsm.Node {
	t := cfg.Node.Tags
	return fsm.Node{
		ID: id, Name: cfg.Node.Name, Group: fsm.GroupID(cfg.Node.Group), Peer: cfg.Advertise, Postgres: cfg.PostgreSQL.Advertise,
		API: cfg.API.Advertise, Zone: cfg.Node.Zone, Version: version, Protocol: fsm.Protocol,
		Tags: fsm.Tags{
			NoFailover: t.NoFailover || t.FailoverPriority == 0, NoSync: t.NoSync, NoLoadBalance: t.NoLoadBalance,
			CloneFrom: t.CloneFrom, FailoverPriority: t.FailoverPriority, SyncPriority: t.SyncPriority, User: t.User,
		},
	}
}

func sameNode(a, b fsm.Node) bool {
	if len(a.Tags.User) == 0 && len(b.Tags.User) == 0 {
		a.Tags.User, b.Tags.User = nil, nil
	}
	return reflect.DeepEqual(a, b)
}

// tagsToWire and tagsFromWire carry tags through a join, whose protocol knows texts only.
func tagsToWire(t fsm.Tags) map[string]string {
	out := map[string]string{"failover_priority": strconv.Itoa(t.FailoverPriority), "sync_priority": strconv.Itoa(t.SyncPriority)}
	for name, set := range map[string]bool{"nofailover": t.NoFailover, "nosync": t.NoSync, "noloadbalance": t.NoLoadBalance, "clonefrom": t.CloneFrom} {
		if set {
			out[name] = "true"
		}
	}
	for k, v := range t.User {
		out["user."+k] = v
	}
	return out
}

func tagsFromWire(m map[string]string) fsm.Tags {
	t := fsm.Tags{NoFailover: m["nofailover"] == "true", NoSync: m["nosync"] == "true", NoLoadBalance: m["noloadbalance"] == "true", CloneFrom: m["clonefrom"] == "true"}
	t.FailoverPriority, _ = strconv.Atoi(m["failover_priority"])
	t.SyncPriority, _ = strconv.Atoi(m["sync_priority"]) // older nodes do not send it
	for k, v := range m {
		if len(k) > 5 && k[:5] == "user." {
			if t.User == nil {
				t.User = map[string]string{}
			}
			t.User[k[5:]] = v
		}
	}
	return t
}

// portInUse names the setting and the remedy.
func portInUse(err error, key, addr string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s %s: the port is in use by another program (ss -ltnp shows which): stop it, or change %s in the configuration", key, addr, key)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s %s: this host does not have that address: change %s in the configuration", key, addr, key)
	}
	return err
}

func (n *node) nodeDecided(p decide.Plan) {
	n.metrics.Decision(p.Rule)
	n.service.status(p.Rule + " " + p.Name + ": " + p.Reason)
}

func (n *node) groupDecided(_ fsm.GroupID, p decide.ClusterPlan) { n.metrics.Decision(p.Rule) }

// historyEvents maps the kinds of a group's history to typed events.
var historyEvents = map[string]obs.Kind{
	"granted": obs.Granted, "promoted": obs.Promoted, "released": obs.Released, "expired": obs.Expired, "sync": obs.SyncChanged,
	"opened": obs.FailoverDone, "operation": obs.OperatorAsked,
}

// newsAge is how old an entry may be to count as an event.
const newsAge = 30 * time.Second

// observeEvents turns new lines of history into events.
func (n *node) observeEvents(prev, next *fsm.State) {
	for _, id := range next.GroupIDs() {
		for _, h := range next.History[id] {
			if h.Index <= prev.Index || time.Since(h.At) > newsAge { // a starting node replays the past
				continue
			}
			kind, ok := historyEvents[h.Kind]
			if !ok {
				continue
			}
			n.events.Emit(context.Background(), obs.Event{Time: time.Now(), Kind: kind, Node: next.Name(h.Node), Group: id, Epoch: h.Epoch, Message: h.Text})
			if kind == obs.FailoverDone {
				n.metrics.Failover(id)
			}
		}
	}
}
