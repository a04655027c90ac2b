package consensus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"matriarch/fsm"
	"matriarch/transport"
)

// book knows where nodes are. Raft and gossip know nodes by their UUID alone, so that a changed address is no change of the
// cluster; every connection checks that the right node answers.
type book struct {
	self   fsm.NodeID
	state  func() *fsm.State
	dialer *transport.Dialer
	client *transport.Client

	mu     sync.Mutex
	seeds  map[fsm.NodeID]string // from before the state is known: the log's tail, the join
	gossip map[fsm.NodeID]string // what living nodes say of themselves
	works  map[fsm.NodeID]string // where it was found last
}

func newBook(cfg Config, state func() *fsm.State) *book {
	b := &book{
		self: cfg.ID, state: state, dialer: cfg.Dialer, client: cfg.Client,
		seeds: map[fsm.NodeID]string{}, gossip: map[fsm.NodeID]string{}, works: map[fsm.NodeID]string{},
	}
	maps.Copy(b.seeds, cfg.Seeds)
	return b
}

// learn takes over the addresses of a state that may not be committed: hints, as every address is.
func (b *book) learn(s *fsm.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, n := range s.Nodes {
		b.seeds[id] = n.Peer
	}
}

// hear notes, or forgets when addr is empty, what a node says of itself.
func (b *book) hear(id fsm.NodeID, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if addr == "" {
		delete(b.gossip, id)
		return
	}
	b.gossip[id] = addr
}

// addrs lists where a node may be, best first.
func (b *book) addrs(id fsm.NodeID) []string {
	n := b.state().Nodes[id]
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, a := range []string{b.gossip[id], b.works[id], n.Peer, b.seeds[id]} {
		if a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// addr is the best guess, empty when nothing is known.
func (b *book) addr(id fsm.NodeID) string {
	if a := b.addrs(id); len(a) > 0 {
		return a[0]
	}
	return ""
}

// peers lists all nodes but this one, in order.
func (b *book) peers() []fsm.NodeID {
	s := b.state()
	b.mu.Lock()
	defer b.mu.Unlock()
	ids := map[fsm.NodeID]bool{}
	for id := range s.Nodes {
		ids[id] = true
	}
	if len(ids) == 0 {
		for id := range b.seeds {
			ids[id] = true
		}
	}
	delete(ids, b.self)
	return slices.Sorted(maps.Keys(ids))
}

var errNoAddress = errors.New("no address of this node is known yet")

// try goes through a node's addresses; each attempt gets a fair share of the time that is left.
func (b *book) try(ctx context.Context, id fsm.NodeID, do func(ctx context.Context, addr string) error) error {
	addrs := b.addrs(id)
	if len(addrs) == 0 {
		return fmt.Errorf("%w: %s", errNoAddress, id)
	}
	var errs []error
	for i, addr := range addrs {
		actx, cancel := ctx, context.CancelFunc(func() {})
		if at, ok := ctx.Deadline(); ok && i < len(addrs)-1 {
			actx, cancel = context.WithTimeout(ctx, time.Until(at)/time.Duration(len(addrs)-i))
		}
		err := do(actx, addr)
		cancel()
		if _, answered := errors.AsType[*transport.Error](err); err == nil || answered {
			b.mu.Lock()
			b.works[id] = addr
			b.mu.Unlock()
			return err
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func (b *book) dial(ctx context.Context, kind transport.Kind, id fsm.NodeID) (c net.Conn, err error) {
	err = b.try(ctx, id, func(ctx context.Context, addr string) (err error) {
		c, err = b.dialer.Dial(ctx, kind, addr, string(id))
		return err
	})
	return c, err
}

// call asks a node. Errors are classified as fromWire does.
func (b *book) call(ctx context.Context, id fsm.NodeID, name string, req, resp any) error {
	err := b.try(ctx, id, func(ctx context.Context, addr string) error {
		return fromWire(b.client.Call(ctx, addr, string(id), name, req, resp))
	})
	if errors.Is(err, errNoAddress) {
		return fmt.Errorf("%w: %w", errNotLeading, err)
	}
	return err
}
