package consensus

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"matriarch/fsm"
	"matriarch/transport"
)

// Pre-vote is a property of the transport's concrete type: lost, it is lost silently.
func TestPreVoteIsOn(t *testing.T) {
	var tr raft.Transport = &network{}
	if _, ok := tr.(raft.WithPreVote); !ok {
		t.Error("the transport has no pre-vote")
	}
	if _, ok := tr.(raft.WithClose); !ok {
		t.Error("the transport is not closed by Raft")
	}
}

// H1: heartbeats go through Raft's main goroutine; the fast path that the library installs is not installed.
func TestHeartbeatsTakeTheMainLoop(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		p := h.open("a", "host-a:7400")
		p.book.hear("a", p.addr)
		peers := newStreams(t.Context(), p.mux.Listener(transport.KindRaft), transport.KindRaft, "a", p.book)
		inner := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: peers, MaxPool: 1, Timeout: time.Second, Logger: newLibLog(h.log, "raft")})
		n := &network{NetworkTransport: inner, busy: &busy{}, patience: time.Second, contacts: newContacts(0)}
		n.SetHeartbeatHandler(func(raft.RPC) { t.Error("the fast path took a heartbeat") })
		go func() {
			rpc := <-n.Consumer()
			rpc.Respond(&raft.AppendEntriesResponse{Term: 1, Success: true}, nil)
		}()
		var resp raft.AppendEntriesResponse
		beat := raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, Addr: []byte("a"), ID: []byte("a")}, Term: 1}
		if err := n.AppendEntries("a", "a", &beat, &resp); err != nil || !resp.Success {
			t.Errorf("heartbeat: %+v, %v", resp, err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := p.mux.Close(); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Only messages that tell the peer nothing are left out, and only shortly after it has answered.
func TestIdleMessages(t *testing.T) {
	bubble(t, func(t *testing.T, _ *harness) {
		c := newContacts(100 * time.Millisecond)
		heartbeat := &raft.AppendEntriesRequest{Term: 3}
		full := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 8, Entries: make([]*raft.Log, 2), LeaderCommitIndex: 9}
		empty := func(prev, commit uint64) *raft.AppendEntriesRequest {
			return &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: prev, LeaderCommitIndex: commit}
		}
		yes := &raft.AppendEntriesResponse{Term: 3, Success: true}
		if left, _ := c.idle("a", heartbeat); left > 0 {
			t.Error("a peer that never answered needs its heartbeat")
		}
		c.answered("a", time.Now(), full, yes)
		tests := []struct {
			name          string
			req           *raft.AppendEntriesRequest
			idle, settled bool
		}{
			{"heartbeat", heartbeat, true, true},
			{"known commit index", empty(9, 9), true, true},
			{"known commit index of an older entry", empty(10, 9), true, false},
			{"newer commit index", empty(10, 10), false, false},
			{"position not confirmed", empty(11, 9), false, false},
			{"entries", full, false, false},
			{"another term", &raft.AppendEntriesRequest{Term: 4}, false, false},
		}
		for _, tt := range tests {
			if left, settled := c.idle("a", tt.req); left > 0 != tt.idle || settled != tt.settled {
				t.Errorf("%s: idle for %s, settled %v", tt.name, left, settled)
			}
		}
		if heard, match := c.of("a", 3); match != 10 || time.Since(heard) != 0 {
			t.Errorf("match %d, heard %s", match, heard)
		}
		if heard, match := c.of("a", 4); match != 0 || !heard.IsZero() {
			t.Error("knowledge of another term")
		}
		time.Sleep(100 * time.Millisecond)
		if left, _ := c.idle("a", heartbeat); left > 0 {
			t.Error("quiet for too long")
		}
		c.answered("a", time.Now(), full, yes)
		c.answered("a", time.Now(), full, &raft.AppendEntriesResponse{Term: 3})
		if left, _ := c.idle("a", heartbeat); left > 0 {
			t.Error("quiet after a refusal")
		}
	})
}

// While nothing is new a heartbeat rests for most of the quiet time, and what replicates until an entry is written. Whatever a peer may
// lack does not rest.
func TestRest(t *testing.T) {
	const quiet = 200 * time.Millisecond
	full := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 8, Entries: make([]*raft.Log, 2), LeaderCommitIndex: 10}
	yes := &raft.AppendEntriesResponse{Term: 3, Success: true}
	empty := func(prev, commit uint64) *raft.AppendEntriesRequest {
		return &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: prev, LeaderCommitIndex: commit}
	}
	write := func(n *network, _ chan struct{}) { n.written.last.Store(11); n.written.more.fire() }
	end := func(_ *network, done chan struct{}) { close(done) }
	leave := func(n *network, _ chan struct{}) { n.leaving.Store(true); n.written.more.fire() }
	tests := []struct {
		name     string
		req      *raft.AppendEntriesRequest
		last     uint64
		after    func(*network, chan struct{}) // happens after 100 ms
		from, to time.Duration
	}{
		{"heartbeat", empty(0, 0), 10, nil, quiet * 3 / 4, quiet},
		{"heartbeat and an entry", empty(0, 0), 10, write, quiet * 3 / 4, quiet},
		{"nothing to replicate, and no answer to a heartbeat", empty(10, 10), 10, nil, quiet * 5 / 4, quiet * 7 / 4},
		{"an entry comes", empty(10, 10), 10, write, 100 * time.Millisecond, 100 * time.Millisecond},
		{"the end comes", empty(10, 10), 10, end, 100 * time.Millisecond, 100 * time.Millisecond},
		{"leadership leaves", empty(10, 10), 10, leave, 100 * time.Millisecond, 100 * time.Millisecond},
		{"an entry is there", empty(10, 10), 11, nil, 0, 0},
		{"not committed", empty(9, 10), 10, nil, 0, 0},
		{"newer commit index", empty(10, 11), 10, nil, 0, 0},
		{"entries", full, 10, nil, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, _ *harness) {
				done := make(chan struct{})
				n := &network{busy: &busy{}, written: &written{}, contacts: newContacts(quiet), done: done}
				n.written.last.Store(tt.last)
				n.contacts.answered("a", time.Now(), full, yes)
				if tt.after != nil {
					time.AfterFunc(100*time.Millisecond, func() { tt.after(n, done) })
				}
				began := time.Now()
				n.rest("a", tt.req)
				if took := time.Since(began); took < tt.from || took > tt.to {
					t.Errorf("rested for %s, want %s to %s", took, tt.from, tt.to)
				}
				if left, _ := n.contacts.idle("a", tt.req); left == 0 && len(tt.req.Entries) == 0 && tt.req.PrevLogEntry == 0 {
					t.Error("a heartbeat came back too late to be left out")
				}
				time.Sleep(time.Second) // what was to happen has happened
				if n.leaving.Load() {
					began = time.Now()
					if n.rest("a", tt.req); time.Since(began) > 0 {
						t.Error("rested while leadership leaves")
					}
				}
			})
		})
	}
}

// A node that comes back elsewhere is found by what it says itself, before any entry of the log says so.
func TestGossipFindsNewAddress(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		moved := all[2]
		if l := h.leader(); l == moved {
			moved = all[1]
		}
		h.stop(moved)
		h.open(moved.id, "elsewhere:7500").run()
		h.eventually(20*time.Second, "everybody knows the new address", func() bool {
			for _, p := range others(all, moved) {
				if p.book.addr(moved.id) != "elsewhere:7500" {
					return false
				}
			}
			return true
		})
		h.submit(all[0], fsm.TokenPut{Token: fsm.Token{ID: "after", Uses: 1}})
		h.eventually(10*time.Second, "it follows at its new address", func() bool { _, ok := moved.State().Tokens["after"]; return ok })
		s := moved.State().Nodes[moved.id]
		if s.Peer == "elsewhere:7500" {
			t.Error("the log told the address: the test shows nothing")
		}
		n := s
		n.Peer = "elsewhere:7500"
		h.submit(moved, fsm.NodePut{Node: n}) // which works from there
	})
}

// Gossip's hints: who came, who went.
func TestGossipHints(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		gone := others(all, h.leader())[0]
		b := h.leader().book
		knows := func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.gossip[gone.id] != ""
		}
		h.eventually(30*time.Second, "gossip knows it", knows)
		h.kill(gone)
		h.eventually(30*time.Second, "gossip misses it", func() bool { return !knows() })
	})
}
