package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/transport"
)

// Config is what a Node is made of. Optional are Seeds, Log, Timing and the functions.
type Config struct {
	ID        fsm.NodeID
	Name      string                // for people
	Advertise string                // host:port at which the other nodes reach Mux
	Dir       string                // of the Raft log and snapshots; made when missing
	Seeds     map[fsm.NodeID]string // peer addresses known from the join, by node

	Mux    *transport.Mux // its raft and gossip listeners are used
	Dialer *transport.Dialer
	RPC    *transport.RPCServer // calls are registered; serving it is the caller's
	Client *transport.Client
	Clock  lease.Clock // the only clock of the leases
	Log    *slog.Logger
	Timing Timing

	// OnFatal is told why the node cannot go on; Run ends by itself.
	OnFatal func(error)
	// OnChange is called after every applied entry, by one goroutine. It must not block.
	OnChange func(prev, next *fsm.State)
	// OnTick is told how long each tick's commit took, on the leader. It must not block.
	OnTick func(time.Duration)
	// OnWrite is called before entries are written to the log. While it blocks the disk hangs: for tests.
	OnWrite func()
	// OnPeer is a hint of gossip that a node came or went. It must not block.
	OnPeer func(id fsm.NodeID, alive bool)
	// Lead runs while this node leads, and must return when ctx ends.
	Lead func(ctx context.Context, l Leadership)
}

// Timing holds what tests and slow disks may change; zero values mean the defaults.
type Timing struct {
	Heartbeat, Election, Lease time.Duration // 500, 500 and 400 ms
	Commit                     time.Duration // 50 ms: how late a follower learns what is committed when nothing follows
	Transport                  time.Duration // 2 s: for one message between peers
	Patience                   time.Duration // 1 s: with the leader's own log write
	SnapshotThreshold          uint64        // 1024 entries
	TrailingLogs               uint64        // 2048 entries
}

func (t Timing) withDefaults() Timing {
	d := func(v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		}
	}
	d(&t.Heartbeat, 500*time.Millisecond)
	d(&t.Election, 500*time.Millisecond)
	d(&t.Lease, 400*time.Millisecond)
	d(&t.Commit, 50*time.Millisecond)
	d(&t.Transport, 2*time.Second)
	d(&t.Patience, time.Second)
	if t.SnapshotThreshold == 0 {
		t.SnapshotThreshold = 1024
	}
	if t.TrailingLogs == 0 {
		t.TrailingLogs = 2048
	}
	return t
}

// ErrBootstrapped says that the folder holds a cluster's state already.
var ErrBootstrapped = errors.New("bootstrap: this node belongs to a cluster already")

// Node is one Raft peer. Open, perhaps Bootstrap, Run once, Close.
type Node struct {
	cfg     Config
	store   *store
	snaps   raft.SnapshotStore
	machine *fsm.Machine
	book    *book
	net     *network
	raft    atomic.Pointer[raft.Raft] // set while Run runs
	term    atomic.Pointer[term]      // set while this node leads and is ready

	cancel  context.CancelFunc // ends Run
	failure atomic.Pointer[error]
	applied signal
	moved   time.Time // when leadership was last given away on purpose; the steward's
}

// Open opens the stores. Errors name the folder and the remedy.
func Open(cfg Config) (*Node, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Timing = cfg.Timing.withDefaults()
	st, err := openStore(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if cfg.OnWrite != nil {
		write := st.write
		st.write = func(logs []*raft.Log) error { cfg.OnWrite(); return write(logs) }
	}
	n := &Node{cfg: cfg, store: st, cancel: func() {}}
	n.machine = fsm.NewMachine(n.publish, n.fatal)
	n.book = newBook(cfg, n.State)
	n.snaps, err = raft.NewFileSnapshotStoreWithLogger(cfg.Dir, keepSnapshot, newLibLog(cfg.Log, "raft"))
	if err != nil {
		return nil, errors.Join(storeError(cfg.Dir, err), st.Close())
	}
	tail, _, err := replay(st, n.snaps)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read Raft log in %s: %w", cfg.Dir, err), st.Close())
	}
	n.book.learn(tail.State())
	n.register()
	return n, nil
}

// Bootstrap makes this node the only voter of a new cluster whose first command is c. Call it before Run. It writes all or
// nothing, and fails with ErrBootstrapped when there is something already.
func (n *Node) Bootstrap(c fsm.Bootstrap) error {
	last, err := n.store.LastIndex()
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	snaps, err := n.snaps.List()
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	if last > 0 || len(snaps) > 0 {
		return ErrBootstrapped
	}
	data, err := fsm.Encode(c, "", time.Now())
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	if err := n.store.SetUint64(keyCurrentTerm, 1); err != nil {
		return storeError(n.cfg.Dir, err)
	}
	first := entry(data, 1)
	first.Index, first.Term, first.Type = 2, 1, raft.LogCommand
	err = n.store.StoreLogs([]*raft.Log{
		{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(soleVoter(n.cfg.ID))},
		&first,
	})
	if err != nil {
		return storeError(n.cfg.Dir, err)
	}
	return nil
}

func soleVoter(id fsm.NodeID) raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(id), Address: raft.ServerAddress(id)}}}
}

// Run takes part in the cluster until ctx ends, hands leadership over if it has it, and returns when nothing of it runs any
// more. It returns an error when the node cannot go on.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n.cancel = cancel
	base, stop := context.WithCancel(context.WithoutCancel(ctx)) // of connections: they serve the handing over, too
	defer stop()
	peers := newStreams(base, n.cfg.Mux.Listener(transport.KindRaft), transport.KindRaft, n.cfg.ID, n.book)
	rf, err := n.start(base, peers)
	if err != nil {
		return errors.Join(err, peers.Close())
	}
	n.raft.Store(rf)
	g, err := n.startGossip(base)
	if err != nil {
		cancel()
	}
	var both errgroup.Group
	both.Go(func() error {
		n.leadership(ctx, rf)
		n.handOver(rf)
		return nil
	})
	both.Go(func() error { return g.run(ctx) })
	err = errors.Join(err, both.Wait())
	n.raft.Store(nil)
	done := rf.Shutdown()
	stop()
	err = errors.Join(err, n.net.Close(), done.Error())
	n.net.CloseStreams()
	if f := n.failure.Load(); f != nil {
		return *f
	}
	return err
}

// start begins Raft. The library panics when it cannot write.
func (n *Node) start(base context.Context, peers *streams) (rf *raft.Raft, err error) {
	t := n.cfg.Timing
	log := newLibLog(n.cfg.Log, "raft")
	n.net = &network{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Logger: log, Stream: peers, MaxPool: 2, MaxRPCsInFlight: 1, Timeout: t.Transport, MsgpackUseNewTimeFormat: true,
		}),
		busy: &n.store.busy, written: &n.store.written, patience: t.Patience, contacts: newContacts(t.Heartbeat * 2 / 5), done: base.Done(),
	}
	logs, err := raft.NewLogCache(256, n.store)
	if err != nil {
		return nil, fmt.Errorf("start Raft: %w", err)
	}
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.cfg.ID)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout, c.CommitTimeout = t.Heartbeat, t.Election, t.Lease, t.Commit
	c.SnapshotThreshold, c.TrailingLogs = t.SnapshotThreshold, t.TrailingLogs
	c.ShutdownOnRemove, c.NoLegacyTelemetry, c.Logger = false, true, log
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("start Raft in %s: %v", n.cfg.Dir, p)
		}
		if err != nil {
			err = errors.Join(err, n.net.Close())
		}
	}()
	if rf, err = raft.NewRaft(c, guard{n.machine}, logs, n.store, n.snaps, n.net); err != nil {
		return nil, fmt.Errorf("start Raft in %s: %w", n.cfg.Dir, err)
	}
	fatal := n.fatal
	n.store.fatal.Store(&fatal)
	return rf, nil
}

// Close closes the stores. Call it after Run has returned.
func (n *Node) Close() error {
	if err := n.store.Close(); err != nil {
		return fmt.Errorf("close Raft store: %w", err)
	}
	return nil
}

// State is the newest state known here; it may be older than the leader's. It never blocks.
func (n *Node) State() *fsm.State { return n.machine.State() }

func (n *Node) publish(prev, next *fsm.State) {
	if n.cfg.OnChange != nil {
		n.cfg.OnChange(prev, next)
	}
	n.applied.fire()
}

// fatal ends Run with the first error it is given.
func (n *Node) fatal(err error) {
	if !n.failure.CompareAndSwap(nil, &err) {
		return
	}
	n.cfg.Log.Error("this node cannot go on", "error", err)
	if n.cfg.OnFatal != nil {
		n.cfg.OnFatal(err)
	}
	n.cancel()
}

// signal wakes all who wait for it.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
