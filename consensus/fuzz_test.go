package consensus

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/memberlist"

	"matriarch/fsm"
)

// FuzzGossipMeta: what another node says of itself changes the address of that node at most, and never ours.
func FuzzGossipMeta(f *testing.F) {
	ok, err := json.Marshal(meta{"b", "b:7400"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("b", ok)
	f.Add("a", []byte(`{"id":"a","addr":"evil:1"}`))
	f.Add("b", []byte(`{"id":"a"}`))
	f.Fuzz(func(t *testing.T, name string, said []byte) {
		cfg := Config{ID: "a"}
		n := &Node{cfg: cfg, book: newBook(cfg, fsm.NewState)}
		g := &gossip{n: n}
		g.NotifyUpdate(&memberlist.Node{Name: name, Meta: said})
		for id := range n.book.gossip {
			if id == cfg.ID || string(id) != name {
				t.Fatalf("%q from %s: %v", said, name, n.book.gossip)
			}
		}
	})
}

// FuzzCalls: what a member asks the leader for is refused in words or understood, and what is understood says itself the same again.
func FuzzCalls(f *testing.F) {
	for _, v := range []any{
		Keepalive{Node: "a", Instance: "i", Group: 1, Epoch: fsm.Epoch{Inc: 1, N: 2}, Report: fsm.Report{State: "running"}},
		proposeRequest{Data: encode(fsm.Tick{})},
		proposeRequest{Data: []byte(`{"v":99,"type":"grant","body":{}}`)},
	} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var p proposeRequest
		if json.Unmarshal(body, &p) == nil {
			var env fsm.Envelope
			if submittable(p.Data, 1) == nil && (json.Unmarshal(p.Data, &env) != nil || env.Type == fsm.Tick{}.Kind()) {
				t.Fatalf("%q may be proposed", p.Data)
			}
		}
		var k, again Keepalive
		if json.Unmarshal(body, &k) != nil {
			return
		}
		said, err := json.Marshal(k)
		if err != nil {
			return // a time of the year 10000
		}
		if err := json.Unmarshal(said, &again); err != nil || !cmp.Equal(k, again) {
			t.Fatalf("%+v, then %+v: %v", k, again, err)
		}
	})
}
