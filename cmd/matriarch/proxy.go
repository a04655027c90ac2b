package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"matriarch/fsm"
	"matriarch/internal/config"
	"matriarch/internal/obs"
	"matriarch/internal/proxy"
)

// openProxy opens the ports for clients that the configuration asks for; they are served later.
func (n *node) openProxy() (err error) {
	listeners := proxyListeners(n.cfg.Proxy)
	if len(listeners) == 0 {
		return nil
	}
	n.roles = newRoles(n.consensus.State, n.consensus.Status, n.upheld, n.cfg.Proxy.Standby)
	n.proxy, err = proxy.New(proxy.Config{Listeners: listeners, Source: n.roles, Log: n.log})
	return err
}

// upheld reports whether failsafe keeps a group's primary up, as far as this node knows: it is that primary, or gave it its word.
func (n *node) upheld(g fsm.GroupID) bool {
	if n.consensus.State().Nodes[n.id.NodeID].Group != g {
		return false
	}
	f := n.agent.Failsafe()
	return f.Active || f.WordLeft > 0
}

func proxyListeners(p config.Proxy) []proxy.Listener {
	var out []proxy.Listener
	addrs := p.Listeners()
	for _, kind := range []proxy.Kind{proxy.Coordinator, proxy.Worker, proxy.Standby} {
		if addr := addrs[string(kind)]; addr != "" {
			out = append(out, proxy.Listener{
				Kind: kind, Addr: addr, Setting: fmt.Sprintf("proxy.%s.listen", kind), MaxConns: p.MaxConnections, MaxPerClient: p.MaxPerClient,
				WaitLimit: p.WaitLimit, ConnectTimeout: p.ConnectTimeout, ProxyProtocol: p.ProxyProtocol,
			})
		}
	}
	return out
}

// proxyStats are the listeners' counters, also for the metrics; none without a proxy.
func (n *node) proxyStats() []proxy.ListenerStats {
	if n.proxy == nil {
		return nil
	}
	stats := n.proxy.Stats()
	series := make([]obs.Proxy, 0, len(stats))
	for _, s := range stats {
		p := obs.Proxy{
			Listener: string(s.Kind), Active: s.Active, Waiting: s.Waiting, Accepted: s.Accepted, Cancels: s.Cancels, Deposed: s.Deposed,
			ToServer: s.ToServer, ToClient: s.ToClient, Refused: map[string]uint64{},
		}
		for reason, count := range s.Refused {
			p.Refused[string(reason)] = count
		}
		series = append(series, p)
	}
	n.metrics.Proxy(series)
	return stats
}

func renderProxy(w io.Writer, listeners []proxy.ListenerStats) {
	for _, l := range listeners {
		fmt.Fprintf(w, "  proxy %s at %s: %s\n", l.Kind, l.Addr, strings.Join(proxyCounts(l), ", "))
		for _, s := range l.Servers {
			draining := ""
			if s.Draining {
				draining = ", takes no new ones"
			}
			fmt.Fprintf(w, "    to %s at %s: %d sessions%s\n", s.Name, s.Addr, s.Sessions, draining)
		}
	}
}

// proxyCounts leaves out what never happened.
func proxyCounts(l proxy.ListenerStats) []string {
	out := []string{fmt.Sprintf("%d sessions", l.Active), fmt.Sprintf("%d waiting", l.Waiting), fmt.Sprintf("%d accepted", l.Accepted)}
	for _, reason := range slices.Sorted(maps.Keys(l.Refused)) {
		out = append(out, fmt.Sprintf("%d refused (%s)", l.Refused[reason], reason))
	}
	for _, x := range []struct {
		n    uint64
		what string
	}{{l.Cancels, "cancel requests"}, {l.Deposed, "ended with their server's role"}} {
		if x.n > 0 {
			out = append(out, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	return out
}
