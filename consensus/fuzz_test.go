package consensus

import (
	"encoding/json"
	"testing"

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
