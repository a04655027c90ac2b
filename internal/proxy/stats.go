package proxy

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Reason is why a client was turned away.
type Reason string

// The reasons. Their texts are label values: they never change.
const (
	RefusedLimit       Reason = "limit"        // MaxConns
	RefusedClientLimit Reason = "client_limit" // MaxPerClient
	RefusedNoServer    Reason = "no_server"    // WaitLimit passed
	RefusedTimeout     Reason = "timeout"      // StartupTimeout passed
	RefusedMalformed   Reason = "malformed"    // no startup packet, or no PROXY header
)

// ListenerStats is what one listener has done. Counters rise from New on.
type ListenerStats struct {
	Kind     Kind              `json:"kind"`
	Addr     string            `json:"addr"`              // where it listens
	Accepted uint64            `json:"accepted"`          // connections
	Active   int               `json:"active"`            // sessions attached to a server now
	Waiting  int               `json:"waiting"`           // clients that wait for a server now
	Refused  map[Reason]uint64 `json:"refused,omitempty"` // only reasons that occurred
	Cancels  uint64            `json:"cancels"`           // cancel requests passed on
	Deposed  uint64            `json:"deposed"`           // sessions ended because their server lost the role
	ToServer uint64            `json:"bytes_to_server"`   // of attached sessions, the first packets excepted
	ToClient uint64            `json:"bytes_to_client"`   // the same, the other way
	Servers  []ServerStats     `json:"servers,omitempty"` // that are listed now
}

// ServerStats is one server behind a listener.
type ServerStats struct {
	Name     string `json:"name"`
	Addr     string `json:"addr"`
	Sessions int    `json:"sessions"`           // of this listener, those about to be attached included
	Draining bool   `json:"draining,omitempty"` // gets no new ones
}

// counters is the same at work.
type counters struct {
	open, active, waiting                          atomic.Int64
	accepted, cancels, deposed, toServer, toClient atomic.Uint64

	mu      sync.Mutex
	refused map[Reason]uint64
}

func (c *counters) refuse(r Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused == nil {
		c.refused = map[Reason]uint64{}
	}
	c.refused[r]++
}

// Stats returns the counters of every listener, in the order of the configuration.
func (p *Proxy) Stats() []ListenerStats {
	var out []ListenerStats
	for _, l := range p.listeners {
		c := &l.count
		c.mu.Lock()
		refused := maps.Clone(c.refused)
		c.mu.Unlock()
		out = append(out, ListenerStats{
			Kind: l.Kind, Addr: l.tcp.Addr().String(), Accepted: c.accepted.Load(), Active: int(c.active.Load()), Waiting: int(c.waiting.Load()),
			Refused: refused, Cancels: c.cancels.Load(), Deposed: c.deposed.Load(), ToServer: c.toServer.Load(), ToClient: c.toClient.Load(),
			Servers: l.roster.servers(),
		})
	}
	return out
}
