package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"matriarch/fsm"
	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/transport"
)

const (
	callTimeout   = 5 * time.Second
	leaderTimeout = 2 * time.Second
	submitTimeout = 20 * time.Second
	hedge         = 300 * time.Millisecond // a node that has not answered by then gets company
)

// Client asks the cluster's nodes with this host's certificate.
type Client struct {
	self  identity.Identity
	peers []identity.Peer // this node first
	rpc   *transport.Client
}

// Open reads this host's identity and the known peers.
func Open(cfg config.Config) (*Client, error) {
	dir := identity.Dir(cfg.StateDir)
	self, err := dir.Load()
	if err != nil {
		return nil, err
	}
	tls, err := dir.TLS()
	if err != nil {
		return nil, err
	}
	known, err := dir.Peers()
	if err != nil {
		return nil, err
	}
	peers := []identity.Peer{{ID: self.NodeID, Name: self.Name, Addr: cfg.Advertise}}
	for _, a := range cfg.Peers {
		known = append(known, identity.Peer{Addr: a})
	}
	seen := map[string]bool{cfg.Advertise: true}
	for _, p := range known {
		if p.ID != self.NodeID && !seen[p.Addr] {
			seen[p.Addr] = true
			peers = append(peers, p)
		}
	}
	return NewClient(self, peers, transport.NewClient(&transport.Dialer{Network: transport.TCP{}, Identity: tls})), nil
}

// NewClient makes a client that asks the peers in this order.
func NewClient(self identity.Identity, peers []identity.Peer, rpc *transport.Client) *Client {
	return &Client{self: self, peers: peers, rpc: rpc}
}

// Self is this host's identity.
func (c *Client) Self() identity.Identity { return c.self }

// Close closes the connections.
func (c *Client) Close() { c.rpc.Close() }

type reply struct {
	peer identity.Peer
	st   Status
	err  error
}

// Status asks the nodes one after the other, this host's first, and does not wait long for any. The first answer counts.
func (c *Client) Status(ctx context.Context) (Status, error) {
	r, err := c.first(ctx)
	return r.st, err
}

func (c *Client) first(ctx context.Context) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	replies := make(chan reply, len(c.peers))
	next, waiting := 0, 0
	ask := func() {
		if next == len(c.peers) {
			return
		}
		p := c.peers[next]
		next, waiting = next+1, waiting+1
		go func() {
			var st Status
			err := c.rpc.Call(ctx, p.Addr, string(p.ID), CallStatus, struct{}{}, &st)
			if err == nil && (st.State == nil || st.State.Cluster.ID == "") {
				err = fmt.Errorf("%s has no copy of the cluster's state yet: it has not heard of a leader", p.Addr)
			}
			replies <- reply{p, st, err}
		}()
	}
	ask()
	var errs []error
	for waiting > 0 {
		t := time.NewTimer(hedge)
		select {
		case r := <-replies:
			waiting--
			if r.err == nil {
				t.Stop()
				return r, nil
			}
			errs = append(errs, r.err)
			ask()
		case <-t.C:
			ask()
		}
		t.Stop()
	}
	return reply{}, c.silent(errs)
}

// silent is the error when no node answers.
func (c *Client) silent(errs []error) error {
	for _, err := range errs {
		if errors.Is(err, transport.ErrOtherIncarnation) || errors.Is(err, transport.ErrForeignCluster) || errors.Is(err, transport.ErrUntrusted) {
			return err // somebody answers, and says what is wrong
		}
	}
	tried := make([]string, 0, len(c.peers))
	for _, p := range c.peers {
		tried = append(tried, strings.TrimSpace(p.Name+" "+p.Addr))
	}
	return fmt.Errorf("no node of the cluster answered: tried %s; is matriarch running here? systemctl status matriarch (%w)", strings.Join(tried, ", "), errs[0])
}

// StatusOf asks one node.
func (c *Client) StatusOf(ctx context.Context, n fsm.Node) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var st Status
	if err := c.rpc.Call(ctx, n.Peer, string(n.ID), CallStatus, struct{}{}, &st); err != nil {
		return Status{}, fmt.Errorf("ask %s: %w; is matriarch running there?", n.Name, err)
	}
	return st, nil
}

// RestartStandby has a node restart its PostgreSQL, which must be a standby. It returns when it is on its way.
func (c *Client) RestartStandby(ctx context.Context, n fsm.Node) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := c.rpc.Call(ctx, n.Peer, string(n.ID), CallRestart, struct{}{}, &struct{}{}); err != nil {
		return fmt.Errorf("restart %s: %w", n.Name, err)
	}
	return nil
}

// Reinit has a node clone its PostgreSQL, which must be a standby, anew. It returns when that is on its way.
func (c *Client) Reinit(ctx context.Context, n fsm.Node, from fsm.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	if err := c.rpc.Call(ctx, n.Peer, string(n.ID), CallReinit, ReinitRequest{from}, &struct{}{}); err != nil {
		return fmt.Errorf("reinit %s: %w", n.Name, err)
	}
	return nil
}

// Snapshot reads the newest replicated state, as fsm.ReadSnapshot takes it.
func (c *Client) Snapshot(ctx context.Context) ([]byte, error) {
	r, err := c.first(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	var state json.RawMessage
	if err := c.rpc.Call(ctx, r.peer.Addr, string(r.peer.ID), CallSnapshot, struct{}{}, &state); err != nil {
		return nil, fmt.Errorf("read the state from %s: %w", r.st.Name, err)
	}
	return state, nil
}

// WouldSwitch asks the leader whom a switchover would make primary.
func (c *Client) WouldSwitch(ctx context.Context, leader fsm.Node, g fsm.GroupID, to fsm.NodeID) (fsm.NodeID, error) {
	err := c.rpc.Call(ctx, leader.Peer, string(leader.ID), CallWouldSwitch, SwitchQuestion{g, to}, &to)
	return to, err
}

// Formation is the leader's status, or any node's when the leader does not answer.
func (c *Client) Formation(ctx context.Context) (Status, error) {
	st, err := c.Status(ctx)
	if err != nil || st.Raft.Leads {
		return st, err
	}
	leader, known := st.State.Nodes[st.Raft.Leader]
	if !known {
		return st, nil
	}
	lctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	if led, err := c.StatusOf(lctx, leader); err == nil && led.State != nil {
		return led, nil
	}
	return st, nil
}

// Submit has a node that answers carry the request to the leader. A refusal is a Result, not an error. After an error the outcome is
// open: it is never tried again elsewhere.
func (c *Client) Submit(ctx context.Context, req Request) (fsm.Result, error) {
	r, err := c.first(ctx)
	if err != nil {
		return fsm.Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	var res fsm.Result
	err = c.rpc.Call(ctx, r.peer.Addr, string(r.peer.ID), CallAdmin, req, &res)
	if _, answered := errors.AsType[*transport.Error](err); err != nil && !answered {
		return res, fmt.Errorf("%w: whether it was done is not known, look with 'matriarch list'", err)
	}
	return res, err
}
