package proxy

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"matriarch/fsm"
)

// Whatever the order of changes, a seat lives exactly as long as its pair is listed, and is only given at an open target with the fewest seats.
func TestRosterProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRoster()
		var listed []Target
		held := map[*seat]bool{}
		load := func(p pair) (n int) {
			for s := range held {
				if s.pair() == p {
					n++
				}
			}
			return n
		}
		t.Repeat(map[string]func(*rapid.T){
			"update": func(t *rapid.T) {
				listed = nil
				for node := range 3 {
					if rapid.Bool().Draw(t, "listed") {
						listed = append(listed, Target{
							Node: fsm.NodeID(strconv.Itoa(node)), Epoch: fsm.Epoch{N: rapid.Uint64Range(1, 3).Draw(t, "epoch")}, Draining: rapid.Bool().Draw(t, "draining"),
						})
					}
				}
				r.mu.Lock()
				changed := r.changed
				r.mu.Unlock()
				before := fmt.Sprint(r.list())
				r.update(listed)
				select {
				case <-changed:
				default:
					if before != fmt.Sprint(r.list()) {
						t.Fatal("nobody was told of the change")
					}
				}
				for s := range held {
					if s.ctx.Err() != nil {
						delete(held, s)
					}
				}
			},
			"take": func(t *rapid.T) {
				s, changed := r.take(t.Context(), nil)
				if s == nil {
					for _, l := range listed {
						if !l.Draining {
							t.Fatalf("%+v was not offered", l)
						}
					}
					if changed == nil {
						t.Fatal("nothing to wait for")
					}
					return
				}
				for _, l := range listed {
					if !l.Draining && load(l.pair()) < load(s.pair()) {
						t.Fatalf("%+v has fewer sessions than %+v", l, s.Target)
					}
				}
				held[s] = true
			},
			"release": func(*rapid.T) {
				for s := range held {
					s.release()
					delete(held, s)
					return
				}
			},
			"": func(t *rapid.T) {
				for s := range held {
					found := false
					for _, l := range listed {
						found = found || l.pair() == s.pair()
					}
					if !found {
						t.Fatalf("a session lives on %+v, which is not listed", s.Target)
					}
				}
				n := 0
				for _, seats := range r.seats {
					n += len(seats)
				}
				if n != len(held) {
					t.Fatalf("%d seats, %d sessions", n, len(held))
				}
			},
		})
	})
}

// The same with real connections: every (node, epoch) has a server of its own, so a connection shows which pair it belongs to.
func TestNoConnectionStaysOnAnUnlistedServer(t *testing.T) {
	src := newSource()
	servers := map[pair]*backend{}
	for node := range 2 {
		for epoch := range uint64(3) {
			name := "n" + strconv.Itoa(node)
			b := newBackend(t, name)
			servers[b.target(epoch).pair()] = b
		}
	}
	p := start(t, src, Listener{Kind: Worker, MaxConns: 100_000, WaitLimit: time.Minute, StartupTimeout: time.Hour})
	addr := p.listeners[0].tcp.Addr().String()
	stages := [][]byte{nil, startupPacket()[:5], sslRequest, startupPacket(), append(startupPacket(), "some text"...)}

	rapid.Check(t, func(t *rapid.T) {
		var clients []net.Conn
		defer func() {
			for _, c := range clients {
				c.Close()
			}
		}()
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			for range rapid.IntRange(0, 4).Draw(t, "clients") {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				c.Write(rapid.SampledFrom(stages).Draw(t, "stage"))
				clients = append(clients, c)
			}
			var listed []Target
			for node := range 2 {
				if rapid.Bool().Draw(t, "listed") {
					epoch := rapid.Uint64Range(0, 2).Draw(t, "epoch")
					b := servers[pair{fsm.NodeID("n" + strconv.Itoa(node)), fsm.Epoch{Inc: 1, N: epoch}}]
					listed = append(listed, b.target(epoch))
				}
			}
			src.set(Worker, listed...)
			ok := map[pair]bool{}
			for _, l := range listed {
				ok[l.pair()] = true
			}
			eventually(t, fmt.Sprintf("only %v have connections", ok), func() bool {
				for pr, b := range servers {
					if n, _, _ := b.count(); n > 0 && !ok[pr] {
						return false
					}
				}
				return true
			})
		}
		// Whoever asked for a session in full gets one as soon as there is a server.
		for pr, b := range servers {
			src.set(Worker, b.target(pr.epoch.N))
			break
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
		c.SetDeadline(time.Now().Add(patience))
		c.Write(startupPacket())
		if _, err := io.ReadFull(c, make([]byte, len(authOK))); err != nil {
			t.Fatalf("no session at the end: %v", err)
		}
	})
}
