package main

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"matriarch/consensus"
	"matriarch/fsm"
	"matriarch/internal/config"
	"matriarch/internal/proxy"
)

const (
	// openGrace is how long a primary that clients may enter gets to say that it lets them in: its pg_hba.conf is opened in between, and the
	// refusals until then cannot be seen inside TLS.
	openGrace = time.Second

	// staleLook is how often a node without a leader looks whether it has one.
	staleLook = 500 * time.Millisecond

	// positionsApart is how much older than the primary's a standby's report can be because positions travel seldom: then it proves no lag.
	positionsApart = 15 * time.Second
)

// roles implements proxy.Source over the replicated state.
//
// A node that has heard of no leader for a TTL may have missed a change of primary. It need not find out: a primary that was replaced has stopped
// itself by then. So the sessions there stay, for their server to end, and new ones wait for the leader's word. Standbys go on taking readers,
// who were never promised more than what a standby has. With failsafe the primary's own node, and members that gave it their word, know
// that it is up, and go on bringing clients to it.
type roles struct {
	state   func() *fsm.State
	status  func() consensus.Status
	upheld  func(fsm.GroupID) bool // failsafe keeps the group's primary up, as far as this node knows
	standby config.ProxyStandby
	wake    chan struct{}

	mu      sync.Mutex
	lists   map[proxy.Kind][]proxy.Target
	changed chan struct{} // closed when lists change

	// Below: owned by run.
	current bool                      // the log of before the start has been read to its end
	open    map[primaryship]time.Time // since when the present primaries may be entered
	lagging map[fsm.NodeID]bool
}

// primaryship is one node's time as primary.
type primaryship struct {
	node  fsm.NodeID
	epoch fsm.Epoch
}

func newRoles(state func() *fsm.State, status func() consensus.Status, upheld func(fsm.GroupID) bool, standby config.ProxyStandby) *roles {
	return &roles{
		state: state, status: status, upheld: upheld, standby: standby, wake: make(chan struct{}, 1), lists: map[proxy.Kind][]proxy.Target{}, changed: make(chan struct{}),
		open: map[primaryship]time.Time{}, lagging: map[fsm.NodeID]bool{},
	}
}

// moved tells that the state has changed. It never blocks.
func (r *roles) moved() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Targets implements proxy.Source.
func (r *roles) Targets(k proxy.Kind) []proxy.Target {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lists[k]
}

// Changed implements proxy.Source.
func (r *roles) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// run keeps the lists until ctx ends.
func (r *roles) run(ctx context.Context) error {
	for {
		s := r.state()
		stale, next := r.stale(s, r.status())
		lists, soon := r.cast(s, stale, time.Now())
		r.publish(lists)
		t := time.NewTimer(min(next, soon))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-r.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

func (r *roles) publish(lists map[proxy.Kind][]proxy.Target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if maps.EqualFunc(r.lists, lists, slices.Equal[[]proxy.Target]) {
		return
	}
	r.lists = lists
	close(r.changed)
	r.changed = make(chan struct{})
}

// stale reports whether the state may be of the past, and when to look again.
func (r *roles) stale(s *fsm.State, st consensus.Status) (bool, time.Duration) {
	ttl := cmp.Or(s.Cluster.Settings.TTL, fsm.DefaultSettings().TTL)
	r.current = r.current || st.LastContact >= 0 && st.Applied >= st.Commit
	if !r.current || st.LastContact < 0 || st.LastContact >= ttl {
		return true, staleLook
	}
	return false, ttl - st.LastContact
}

// cast says who plays which role, and after how long that changes though the state does not.
func (r *roles) cast(s *fsm.State, stale bool, now time.Time) (map[proxy.Kind][]proxy.Target, time.Duration) {
	lists := map[proxy.Kind][]proxy.Target{proxy.Coordinator: nil, proxy.Worker: nil, proxy.Standby: nil}
	open, next := map[primaryship]time.Time{}, time.Hour
	for _, id := range s.GroupIDs() {
		g := s.Groups[id]
		if n, ok := s.Primary(id); ok && !g.Lease.Revoked {
			p := primaryship{n.ID, g.Epoch}
			open[p] = now
			if since, known := r.open[p]; known {
				open[p] = since
			}
			wait := openGrace - now.Sub(open[p])
			shut := wait > 0 && (!n.Report.Open || n.Report.Role != "primary" || n.Report.Epoch != g.Epoch)
			if shut {
				next = min(next, wait)
			}
			kind := proxy.Worker
			if id == 0 {
				kind = proxy.Coordinator
			}
			lists[kind] = append(lists[kind], proxy.Target{
				Node: n.ID, Name: n.Name, Addr: n.Postgres, Epoch: g.Epoch, Draining: stale && (!r.current || !r.upheld(id)) || shut || g.Op.Demoting(g.Epoch),
			})
		}
		if r.standby.Groups == "all" || (id == 0) == (r.standby.Groups == "coordinator") {
			lists[proxy.Standby] = append(lists[proxy.Standby], r.readers(s, g)...)
		}
	}
	r.open = open
	return lists, next
}

// readers lists a group's servers for readers. All that run keep those they have, a standby that is now primary as well.
func (r *roles) readers(s *fsm.State, g fsm.Group) []proxy.Target {
	var out []proxy.Target
	primary := s.Nodes[g.Lease.Holder].Report
	for _, n := range s.Members(g.ID) {
		if n.Report.State == "" || n.Report.State == "stopped" {
			continue
		}
		r.lagging[n.ID] = lagging(primary, n.Report, r.standby.MaxLagBytes, r.lagging[n.ID])
		fit := n.ID != g.Lease.Holder && n.Report.State == "streaming" && n.Report.Epoch == g.Epoch && n.Report.Open && !n.Tags.NoLoadBalance && !r.lagging[n.ID]
		out = append(out, proxy.Target{Node: n.ID, Name: n.Name, Addr: n.Postgres, Draining: !fit})
	}
	return out
}

// lagging judges a standby by two reports that are of different moments. Where they prove nothing, the judgement before stands.
func lagging(primary, standby fsm.Report, limit int, before bool) bool {
	early := primary.At.Sub(standby.At)
	switch {
	case limit == 0 || int64(primary.Replay)-int64(standby.Replay) <= int64(limit):
		return false
	case early > 0 && early <= positionsApart:
		return before
	}
	return true
}
