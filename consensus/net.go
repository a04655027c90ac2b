package consensus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"matriarch/fsm"
	"matriarch/transport"
)

// errStalled is what a leader with a hung disk gets instead of an answer.
var errStalled = errors.New("not sent: this node's own log write hangs, another node shall lead")

// network is Raft's transport. It embeds the library's by its concrete type: by the interface, pre-vote would be lost silently.
type network struct {
	*raft.NetworkTransport
	busy     *busy
	written  *written
	patience time.Duration // with a log write of our own
	contacts *contacts
	done     <-chan struct{} // no message is held back any more
	leaving  atomic.Bool     // leadership is being handed over: the library first wants an answer from the successor, within its election timeout
}

// SetHeartbeatHandler does nothing, so that heartbeats take Raft's main goroutine like everything else: the library's short cut
// changes state and term beside it (hashicorp/raft#695).
func (*network) SetHeartbeatHandler(func(raft.RPC)) {}

// EncodePeer implements raft.Transport: a node's address, as far as Raft is concerned, is its UUID. A vote is remembered by it.
func (*network) EncodePeer(id raft.ServerID, _ raft.ServerAddress) []byte { return []byte(id) }

// AppendEntries implements raft.Transport. Heartbeats of the library do not wait for the leader's own disk: with a hung one it
// would lead for ever and commit nothing, so it falls silent.
func (t *network) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	t.rest(id, req)
	if t.busy.longer(t.patience) {
		return errStalled
	}
	if left, _ := t.contacts.idle(id, req); left > 0 {
		// No header: the next answer is decoded into the same slices, and would write into the request's.
		*resp = raft.AppendEntriesResponse{Term: req.Term, Success: true}
		return nil
	}
	sent := time.Now()
	err := t.NetworkTransport.AppendEntries(id, target, req, resp)
	if err == nil {
		t.contacts.answered(id, sent, req, resp)
	}
	return err
}

// rest holds the library's goroutine while the peer needs nothing of it: it would come back dozens of times a second for nothing. Entries
// end it. A heartbeat comes back early enough for the library's own pause before the next, which is due then; what replicates comes
// later, so that it finds the peer's answer to that.
func (t *network) rest(id raft.ServerID, req *raft.AppendEntriesRequest) {
	replicates := req.PrevLogEntry > 0
	pause := t.contacts.quiet / 6
	for {
		var more <-chan struct{}
		if replicates {
			more = t.written.more.wait()
			if t.leaving.Load() || t.written.last.Load() != req.PrevLogEntry {
				return
			}
		}
		left, settled := t.contacts.idle(id, req)
		if !settled {
			return
		}
		until := left - pause
		if replicates {
			until = left + 3*pause
		}
		if until <= 0 {
			return
		}
		timer := time.NewTimer(t.contacts.together(until))
		select {
		case <-timer.C:
			continue
		case <-more:
		case <-t.done:
		}
		timer.Stop()
		return
	}
}

// AppendEntriesPipeline implements raft.Transport: none, at a few entries a second it gains nothing.
func (*network) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// contacts is what the leader knows of its peers from their answers.
type contacts struct {
	quiet time.Duration // within which an answered peer needs no further idle message
	began time.Time

	mu    sync.Mutex
	term  uint64
	peers map[fsm.NodeID]contact
}

type contact struct {
	heard  time.Time // when an answer came
	sent   time.Time // when what it answers was sent
	match  uint64    // the log agrees up to here
	commit uint64    // the commit index it has been told
}

func newContacts(quiet time.Duration) *contacts {
	return &contacts{quiet: quiet, began: time.Now(), peers: map[fsm.NodeID]contact{}}
}

// idle reports how much longer a message tells the peer nothing new so soon after its last answer, and whether that stays so until
// another entry is written here. The library sends many more idle messages than are needed to keep a leader, and each costs both
// sides a wake-up. A peer that has not answered is never skipped, and the leader may believe in it for no longer than the quiet time.
func (c *contacts) idle(id raft.ServerID, req *raft.AppendEntriesRequest) (left time.Duration, settled bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.peers[fsm.NodeID(id)]
	if !ok || c.term != req.Term || len(req.Entries) > 0 || req.LeaderCommitIndex > p.commit || req.PrevLogEntry > p.match {
		return 0, false
	}
	left = c.quiet - time.Since(p.sent)
	return max(left, 0), left > 0 && req.PrevLogEntry <= p.commit
}

// together lengthens a wait a little, so that those for several peers end at once and cost one wake-up.
func (c *contacts) together(d time.Duration) time.Duration {
	grid := max(c.quiet/8, 1)
	return d + grid - (time.Since(c.began)+d)%grid
}

func (c *contacts) answered(id raft.ServerID, sent time.Time, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if req.Term > c.term {
		c.term = req.Term
		clear(c.peers)
	}
	if req.Term < c.term || resp.Term > req.Term {
		return
	}
	p := c.peers[fsm.NodeID(id)]
	p.heard = time.Now()
	if resp.Success {
		p.match = max(p.match, req.PrevLogEntry+uint64(len(req.Entries)))
		p.commit = max(p.commit, min(req.LeaderCommitIndex, p.match))
		p.sent = sent
	} else {
		p.match, p.commit, p.sent = 0, 0, time.Time{}
	}
	c.peers[fsm.NodeID(id)] = p
}

// of says when a peer last answered in the term, zero if it has not, and how far its log is known to agree.
func (c *contacts) of(id fsm.NodeID, term uint64) (heard time.Time, match uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term != term {
		return time.Time{}, 0
	}
	p := c.peers[id]
	return p.heard, p.match
}

// streams is the library's view of the network: a listener, and connections to nodes by UUID. Closing it closes all of them.
type streams struct {
	ctx  context.Context // ends dialing
	ln   net.Listener
	kind transport.Kind
	self fsm.NodeID
	book *book

	mu     sync.Mutex
	open   map[*tracked]struct{}
	closed bool
}

func newStreams(ctx context.Context, ln net.Listener, kind transport.Kind, self fsm.NodeID, b *book) *streams {
	return &streams{ctx: ctx, ln: ln, kind: kind, self: self, book: b, open: map[*tracked]struct{}{}}
}

// Accept implements net.Listener.
func (s *streams) Accept() (net.Conn, error) {
	c, err := s.ln.Accept()
	if err != nil {
		return nil, err
	}
	return s.track(c)
}

// Dial implements raft.StreamLayer.
func (s *streams) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.book.dial(ctx, s.kind, fsm.NodeID(to))
	if err != nil {
		return nil, fmt.Errorf("reach node %s: %w", to, err)
	}
	return s.track(c)
}

// Close implements net.Listener.
func (s *streams) Close() error {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for c := range open {
		_ = c.Conn.Close() // nothing is owed to the other side
	}
	return s.ln.Close()
}

// Addr implements net.Listener.
func (s *streams) Addr() net.Addr { return nodeAddr(s.self) }

func (s *streams) track(c net.Conn) (net.Conn, error) {
	t := &tracked{Conn: c, of: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close() // as above
		return nil, net.ErrClosed
	}
	s.open[t] = struct{}{}
	return t, nil
}

type tracked struct {
	net.Conn
	of *streams
}

func (t *tracked) Close() error {
	t.of.mu.Lock()
	delete(t.of.open, t)
	t.of.mu.Unlock()
	return t.Conn.Close()
}

// peer is the node at the other end.
func (t *tracked) peer() fsm.NodeID {
	p, _ := transport.PeerOf(t.Conn)
	return fsm.NodeID(p.NodeID)
}

// nodeAddr is a node's UUID as an address.
type nodeAddr fsm.NodeID

func (nodeAddr) Network() string  { return "matriarch" }
func (a nodeAddr) String() string { return string(a) }
