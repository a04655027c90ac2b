package conductor

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// bench is a group whose lease is free, and its two members.
type bench struct {
	mu    sync.Mutex
	state *fsm.State
	fit   time.Time // when the only candidate becomes so
	asked int
	given time.Time
}

func (b *bench) Term() uint64 { return 1 }

func (b *bench) State() *fsm.State { return b.state }

func (b *bench) Heard(fsm.NodeID) (time.Duration, bool) { return 0, true }

func (b *bench) Submit(_ context.Context, c fsm.Command) (fsm.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if g, ok := c.(fsm.GrantCmd); ok && g.Holder == "a" && b.given.IsZero() {
		b.given = time.Now()
	}
	return fsm.Result{Reason: "this is a bench"}, nil
}

func (b *bench) Probe(context.Context, fsm.Node, fsm.Node) (decide.Probe, error) {
	return decide.Probe{}, nil
}

func (b *bench) Recruit(_ context.Context, n fsm.Node, e fsm.Epoch) (decide.Recruit, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := decide.Recruit{Node: n.ID, Instance: "i", Promise: e, Timeline: 1, LSN: 10}
	if n.ID == "a" {
		b.asked++
		r.LSN = 20
		if time.Now().Before(b.fit) {
			r.Unfit = "its watchdog is missing"
		}
	}
	return r, nil
}

// TestAnUnfitCandidateIsAskedAgain: the only one who has everything may not become primary at first. The election does not wait for it for
// ever by what it said then.
func TestAnUnfitCandidateIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fsm.NewState()
		s.Cluster.Settings = fsm.DefaultSettings()
		for _, id := range []fsm.NodeID{"a", "b"} {
			s.Nodes[id] = fsm.Node{ID: id, Name: string(id), Postgres: string(id) + ":1", Tags: fsm.Tags{NoFailover: id == "b"}}
		}
		s.Groups[0] = fsm.Group{
			Mode: fsm.Quorum, SystemID: "sys", LastHolder: "a", Sync: fsm.Sync{Pairs: []fsm.Pair{{}}}, Grants: []fsm.Grant{{Holder: "a", Timeline: 1}},
		}
		b := &bench{state: s, fit: time.Now().Add(10 * time.Second)}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		began := time.Now()
		New(Config{Recruiter: b, Log: slog.New(slog.DiscardHandler)}).Run(ctx, b)
		if took := b.given.Sub(began); b.given.IsZero() || took < 10*time.Second || took > 12*time.Second {
			t.Errorf("granted after %s, and it was fit after 10s", took)
		}
		if b.asked > 15 {
			t.Errorf("asked %d times in 10 s", b.asked)
		}
	})
}
