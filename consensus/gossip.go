package consensus

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/raft"

	"matriarch/fsm"
	"matriarch/transport"
)

const (
	gossipTimeout = 2 * time.Second
	probeEvery    = time.Second
	joinEvery     = 10 * time.Second
	joinAtOnce    = 3    // nodes asked in one round
	packetQueue   = 64   // packets waiting for one peer; more are dropped, as by UDP
	maxPacket     = 8192 // bytes
	gossipPort    = 1    // memberlist wants one
)

// A gossip connection begins with one of these.
const (
	packets = 'P' // length-prefixed packets, one way
	stream  = 'S' // memberlist's own protocol
)

// gossip tells nodes where the others are, and hints when one is gone. It runs on the peer port, over mutual TLS, and replaces
// memberlist's UDP by packets on one cached connection a peer. Memberlist wants IP addresses: it gets a digest of the UUID, and
// everything is addressed by name.
type gossip struct {
	n    *Node
	net  *gossipNet
	list *memberlist.Memberlist
}

// meta is what a node says of itself.
type meta struct {
	ID   fsm.NodeID `json:"id"`
	Addr string     `json:"addr"`
}

func (n *Node) startGossip(ctx context.Context) (*gossip, error) {
	ln := newStreams(ctx, n.cfg.Mux.Listener(transport.KindGossip), transport.KindGossip, n.cfg.ID, n.book)
	g := &gossip{n: n, net: newGossipNet(ctx, ln)}
	c := memberlist.DefaultLANConfig()
	c.Name, c.Transport, c.Label = string(n.cfg.ID), g.net, n.cfg.Dialer.Identity.Self().ClusterID
	c.BindPort, c.AdvertisePort = gossipPort, gossipPort
	c.TCPTimeout, c.ProbeInterval, c.ProbeTimeout = gossipTimeout, probeEvery, probeEvery/2
	c.AwarenessMaxMultiplier = 1 // a probe ends within probeEvery: close counts on it
	c.GossipInterval, c.PushPullInterval = 500*time.Millisecond, time.Minute
	c.DisableTcpPings, c.RequireNodeNames, c.EnableCompression = true, true, false
	c.DNSConfigPath = ""
	c.Delegate, c.Events = g, g
	c.Logger = log.New(quietLog{newLibLog(n.cfg.Log, "memberlist")}, "", 0)
	var err error
	if g.list, err = memberlist.Create(c); err != nil {
		return nil, errors.Join(fmt.Errorf("start gossip: %w", err), g.net.Shutdown())
	}
	return g, nil
}

// run finds nodes that the list lacks, until ctx ends, and ends gossip. There is none when g is nil.
func (g *gossip) run(ctx context.Context) error {
	if g == nil {
		return nil
	}
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return g.close()
		case <-t.C:
		}
		known := map[string]bool{}
		for _, m := range g.list.Members() {
			known[m.Name] = true
		}
		var missing []string
		for _, id := range g.n.book.peers() {
			if !known[string(id)] {
				missing = append(missing, string(id)+"/"+pseudoAddr(id))
			}
		}
		rand.Shuffle(len(missing), func(i, j int) { missing[i], missing[j] = missing[j], missing[i] })
		if _, err := g.list.Join(missing[:min(len(missing), joinAtOnce)]); err != nil {
			g.n.cfg.Log.Debug("gossip reaches nobody new", "error", err)
		}
		t.Reset(joinEvery)
	}
}

// close ends it. Memberlist does not wait for a probe under way, so this does.
func (g *gossip) close() error {
	if err := g.list.Shutdown(); err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	g.net.mu.Lock()
	var last time.Time
	for _, sent := range g.net.owed {
		if sent.After(last) {
			last = sent
		}
	}
	g.net.mu.Unlock()
	<-time.After(time.Until(last.Add(probeEvery)))
	return nil
}

// NodeMeta implements memberlist.Delegate.
func (g *gossip) NodeMeta(limit int) []byte {
	b, err := json.Marshal(meta{g.n.cfg.ID, g.n.cfg.Advertise})
	if err != nil || len(b) > limit {
		return nil // an address of 400 characters: the state has it
	}
	return b
}

// NotifyMsg implements memberlist.Delegate.
func (*gossip) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (*gossip) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (*gossip) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (*gossip) MergeRemoteState([]byte, bool) {}

// NotifyJoin implements memberlist.EventDelegate.
func (g *gossip) NotifyJoin(m *memberlist.Node) {
	g.NotifyUpdate(m)
	g.hint(m, true)
}

// NotifyUpdate implements memberlist.EventDelegate.
func (g *gossip) NotifyUpdate(m *memberlist.Node) {
	var says meta
	if json.Unmarshal(m.Meta, &says) == nil && says.ID == fsm.NodeID(m.Name) && says.ID != g.n.cfg.ID {
		g.n.book.hear(says.ID, says.Addr)
	}
}

// NotifyLeave implements memberlist.EventDelegate.
func (g *gossip) NotifyLeave(m *memberlist.Node) {
	g.n.book.hear(fsm.NodeID(m.Name), "")
	g.hint(m, false)
}

func (g *gossip) hint(m *memberlist.Node, alive bool) {
	if g.n.cfg.OnPeer != nil && m.Name != string(g.n.cfg.ID) {
		g.n.cfg.OnPeer(fsm.NodeID(m.Name), alive)
	}
}

// pseudoIP stands for a node where memberlist wants an IP address.
func pseudoIP(id fsm.NodeID) net.IP {
	sum := sha256.Sum256([]byte(id))
	ip := net.IP(sum[:net.IPv6len])
	ip[0] = 0xfd // a unique local address
	return ip
}

func pseudoAddr(id fsm.NodeID) string {
	return net.JoinHostPort(pseudoIP(id).String(), fmt.Sprint(gossipPort))
}

// quietLog passes memberlist's lines on.
type quietLog struct{ to *libLog }

// Write implements io.Writer.
func (l quietLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	text = strings.TrimSpace(strings.TrimPrefix(text[strings.Index(text, "]")+1:], " memberlist:"))
	l.to.Debug(text)
	return len(line), nil
}

// gossipNet implements memberlist.NodeAwareTransport.
type gossipNet struct {
	ctx    context.Context
	ln     *streams
	in     chan *memberlist.Packet
	conns  chan net.Conn
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	senders map[fsm.NodeID]chan []byte
	owed    map[fsm.NodeID]time.Time // when a peer was sent the last packet, if nothing has come from it since
}

func newGossipNet(ctx context.Context, ln *streams) *gossipNet {
	ctx, cancel := context.WithCancel(ctx)
	t := &gossipNet{
		ctx: ctx, cancel: cancel, ln: ln, in: make(chan *memberlist.Packet), conns: make(chan net.Conn),
		senders: map[fsm.NodeID]chan []byte{}, owed: map[fsm.NodeID]time.Time{},
	}
	t.wg.Go(t.accept)
	return t
}

func (t *gossipNet) accept() {
	for {
		c, err := t.ln.Accept()
		if err != nil {
			return // closed: the listener knows no other error
		}
		t.wg.Go(func() { t.receive(c) })
	}
}

// receive reads what kind of connection it is, and packets until it ends.
func (t *gossipNet) receive(c net.Conn) {
	var kind [1]byte
	_ = c.SetReadDeadline(time.Now().Add(gossipTimeout)) // fails on a dead connection only
	if _, err := io.ReadFull(c, kind[:]); err != nil || (kind[0] != packets && kind[0] != stream) {
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{}) // as above
	if kind[0] == stream {
		select {
		case t.conns <- c:
		case <-t.ctx.Done():
			_ = c.Close()
		}
		return
	}
	defer func() { _ = c.Close() }()
	from := c.(*tracked).peer()
	for r := bufio.NewReader(c); ; {
		var size [2]byte
		if _, err := io.ReadFull(r, size[:]); err != nil {
			return
		}
		buf := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(r, buf); err != nil {
			return
		}
		select {
		case t.in <- &memberlist.Packet{Buf: buf, From: c.RemoteAddr(), Timestamp: time.Now()}:
		case <-t.ctx.Done():
			return
		}
		t.mu.Lock()
		delete(t.owed, from)
		t.mu.Unlock()
	}
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *gossipNet) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return pseudoIP(t.ln.self), gossipPort, nil
}

// PacketCh implements memberlist.Transport.
func (t *gossipNet) PacketCh() <-chan *memberlist.Packet { return t.in }

// StreamCh implements memberlist.Transport.
func (t *gossipNet) StreamCh() <-chan net.Conn { return t.conns }

// WriteTo implements memberlist.Transport: without a name there is no node.
func (t *gossipNet) WriteTo([]byte, string) (time.Time, error) { return time.Time{}, errUnnamed }

// DialTimeout implements memberlist.Transport.
func (t *gossipNet) DialTimeout(string, time.Duration) (net.Conn, error) { return nil, errUnnamed }

var errUnnamed = errors.New("gossip addresses nodes by name only")

// WriteToAddress implements memberlist.NodeAwareTransport. It never waits: a packet too many is lost.
func (t *gossipNet) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if a.Name == "" {
		return time.Time{}, errUnnamed
	}
	if len(b) > maxPacket {
		return time.Time{}, fmt.Errorf("gossip packet of %d bytes, at most %d fit", len(b), maxPacket)
	}
	id := fsm.NodeID(a.Name)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return time.Time{}, t.ctx.Err()
	}
	q, ok := t.senders[id]
	if !ok {
		q = make(chan []byte, packetQueue)
		t.senders[id] = q
		t.wg.Go(func() { t.send(id, q) })
	}
	t.owed[id] = time.Now()
	select {
	case q <- append([]byte(nil), b...):
	default:
	}
	return time.Now(), nil
}

// send carries one peer's packets until it fails or has been idle for long; the next packet begins anew.
func (t *gossipNet) send(id fsm.NodeID, q chan []byte) {
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.senders, id)
	}()
	c, err := t.dial(id, packets, gossipTimeout)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	idle := time.NewTimer(time.Minute)
	defer idle.Stop()
	for {
		select {
		case b := <-q:
			_ = c.SetWriteDeadline(time.Now().Add(gossipTimeout)) // fails on a dead connection only
			if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
				return
			}
			idle.Reset(time.Minute)
		case <-idle.C:
			return
		case <-t.ctx.Done():
			return
		}
	}
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *gossipNet) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if a.Name == "" {
		return nil, errUnnamed
	}
	return t.dial(fsm.NodeID(a.Name), stream, timeout)
}

func (t *gossipNet) dial(id fsm.NodeID, kind byte, timeout time.Duration) (net.Conn, error) {
	c, err := t.ln.Dial(raft.ServerAddress(id), timeout)
	if err != nil {
		return nil, err
	}
	_ = c.SetWriteDeadline(time.Now().Add(timeout)) // fails on a dead connection only
	if _, err := c.Write([]byte{kind}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	_ = c.SetWriteDeadline(time.Time{}) // as above
	return c, nil
}

// Shutdown implements memberlist.Transport.
func (t *gossipNet) Shutdown() error {
	t.mu.Lock()
	t.cancel()
	t.mu.Unlock()
	err := t.ln.Close()
	t.wg.Wait()
	return err
}
