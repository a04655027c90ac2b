package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// scenario is an incident that others had, as faults in a fixed order. When it begins h1 is the primary of group 0 and h4 that of group 1.
type scenario struct {
	name, incident string
	early          bool
	faults         []fault
	gap            time.Duration // writes may not stop for longer; 0: they may, as long as the rest holds
	stays          bool          // nobody else may become primary
	measured       bool          // tell what each kind of fault cost
}

// at makes a fault on a host. Times count from the beginning.
func at(begin, lasts time.Duration, kind string, node int) fault {
	return fault{kind: kind, after: begin, lasts: lasts, aim: atNode, node: node, group: groupOf[node]}
}

// rounds hits whoever is the primary, of one group and of the other in turn: the network of its host is cut, and while all is whole again its
// agent stops for less than the lease. A group is cut again when it may fail over early again.
func rounds(n int) (out []fault) {
	for i := range n {
		begin, group := 2*time.Second+time.Duration(i)*17500*time.Millisecond, 1-i%2
		out = append(out, fault{kind: "cut node", after: begin, lasts: 7 * time.Second, aim: atPrimary, group: group},
			fault{kind: "stop agent", after: begin + 13*time.Second, lasts: 2 * time.Second, aim: atPrimary, group: group})
	}
	return out
}

const (
	h1, h2, h3, h4, h5 = 0, 1, 2, 3, 4
	// failoverGap is a failover's with early failover off and a machine that is busy.
	failoverGap = 12 * time.Second
)

// scenarios are what `-scenario list` tells; docs/testing.md says which incident is tested elsewhere.
var scenarios = []scenario{
	{
		name: "standby-crashes-too", incident: "GoCardless 2017-10-10: the primary's disks fail while a process of the synchronous standby crashes, nobody is promoted", early: true, gap: failoverGap,
		faults: []fault{at(1*time.Second, time.Second, "kill backend", h2), at(1*time.Second, 15*time.Second, "kill host", h1), at(1*time.Second, time.Second, "kill backend", h3), at(1*time.Second, time.Second, "kill backend", h5), at(1500*time.Millisecond, 15*time.Second, "disk dies", h4)},
	},
	{
		name: "flapping-router", incident: "GoCardless 2015-07-03: the router is down, again and again; every node is alone", early: true,
		faults: []fault{at(1*time.Second, 6*time.Second, "cut all", h1), at(9*time.Second, 6*time.Second, "cut all", h1), at(17*time.Second, 6*time.Second, "cut all", h1)},
	},
	{
		name: "killed-while-stopping", incident: "GitLab 2021-04-28: a stop that takes too long ends in SIGKILL", early: true, gap: failoverGap,
		faults: []fault{at(1*time.Second, 8*time.Second, "killed while stopping", h1)},
	},
	{
		name: "all-agents-stopped", incident: "GitLab 2024-09: somebody stops the manager on every host of the wrong cluster", early: true,
		faults: []fault{at(1*time.Second, 10*time.Second, "stop all agents", h1)},
	},
	{
		name: "full-disks", incident: "GitLab staging (patroni#1732): the disk is full, the primary restarts in a loop", early: true,
		faults: []fault{at(1*time.Second, 10*time.Second, "full disk", h1), at(1*time.Second, 10*time.Second, "full Raft disk", h4), at(16*time.Second, 8*time.Second, "full disk", h4), at(16*time.Second, 8*time.Second, "full Raft disk", h1)},
	},
	{
		name: "slow-zone", incident: "Datadog game day: the standbys' zone gets slow, then the primary dies", early: true, gap: failoverGap,
		faults: []fault{at(1*time.Second, 20*time.Second, "slow link", h2), at(1*time.Second, 20*time.Second, "slow link", h3), at(6*time.Second, 14*time.Second, "kill host", h1)},
	},
	{
		name: "unheard-then-dead", incident: "Jepsen of CloudNativePG 2025: what a primary acknowledged that no standby heard any more is lost with it", early: true, gap: failoverGap,
		faults: []fault{at(1*time.Second, 8*time.Second, "cut 5432", h1), at(2*time.Second, 12*time.Second, "kill host", h1)},
	},
	{
		name: "unfinished-clone", incident: "stolon#917: the primary dies while a standby is cloned; the empty one is promoted", early: true,
		faults: []fault{at(1*time.Second, time.Second, "reinit", h2), at(1200*time.Millisecond, 8*time.Second, "kill host", h1), at(1*time.Second, time.Second, "reinit", h5), at(1200*time.Millisecond, 8*time.Second, "kill host", h4)},
	},
	{
		name: "short-stall", incident: "home-ops#2265 (CloudNativePG): a short stall of the network fences and fails over", early: true, gap: 5 * time.Second, stays: true,
		faults: []fault{at(1*time.Second, 700*time.Millisecond, "cut all", h1), at(4*time.Second, 700*time.Millisecond, "cut node", h1), at(7*time.Second, 700*time.Millisecond, "cut node", h4)},
	},
	{
		name: "figures", incident: "not from a list: what it costs when the network of a primary's host is cut, or its agent stopped for 2 s, ten times each", early: true, gap: failoverGap, measured: true,
		faults: rounds(10),
	},
	{
		name: "everything-loses-power", incident: "not from a list: all hosts lose power at once with what they had not synced", early: false,
		faults: []fault{at(1*time.Second, 2*time.Second, "power cut", h1), at(1*time.Second, 3*time.Second, "power cut", h2), at(1*time.Second, 4*time.Second, "power cut", h3), at(1*time.Second, 3*time.Second, "power cut", h4), at(1*time.Second, 2*time.Second, "power cut", h5)},
	},
}

func scenarioNamed(name string) (scenario, error) {
	i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
	if i < 0 {
		return scenario{}, fmt.Errorf("there is no scenario %q: -scenario list tells which there are", name)
	}
	s := scenarios[i]
	s.faults = slices.Clone(s.faults)
	slices.SortStableFunc(s.faults, func(a, b fault) int { return cmp.Compare(a.after, b.after) })
	var last time.Duration
	for j := range s.faults {
		begin := s.faults[j].after
		s.faults[j].id, s.faults[j].after, last = j+1, begin-last, begin
	}
	return s, nil
}

// lasts is how long faults are made.
func (s scenario) lasts() (out time.Duration) {
	var begin time.Duration
	for _, f := range s.faults {
		begin += f.after
		out = max(out, begin+f.lasts)
	}
	return out
}

// outages are the times in which no node of the group acknowledged a sample, which is tried on each node by itself, ten times a second.
func (s *sampler) outages() (out []gap) {
	acks := slices.SortedFunc(slices.Values(s.acks), func(a, b ack) int { return a.at.Compare(b.at) })
	for i := 1; i < len(acks); i++ {
		if took := acks[i].at.Sub(acks[i-1].at); took > 2*sampleEvery {
			out = append(out, gap{acks[i-1].at, took})
		}
	}
	return out
}

// worstOf is the longest of the times that overlap with a fault.
func worstOf(gaps []gap, s struck) (worst time.Duration) {
	for _, g := range gaps {
		if g.from.Add(g.took).After(s.at) && g.from.Before(s.at.Add(s.lasts)) {
			worst = max(worst, g.took)
		}
	}
	return worst
}

// figures is what each kind of fault cost the group that it hit: the median, the least and the greatest.
func (v *verdict) figures() string {
	var b strings.Builder
	type what struct {
		kind  string
		lasts time.Duration
	}
	nobody, client := map[what][]time.Duration{}, map[what][]time.Duration{}
	var order []what
	for _, s := range v.struck {
		w := what{s.kind, s.lasts}
		if nobody[w] == nil {
			order = append(order, w)
		}
		for _, l := range v.loads {
			if !l.through && l.group == s.group {
				nobody[w] = append(nobody[w], worstOf(l.sampler.outages(), s))
				client[w] = append(client[w], worstOf(l.numbers.gaps, s))
			}
		}
	}
	spread := func(all []time.Duration) string {
		slices.Sort(all)
		return fmt.Sprintf("%d ms (%d to %d)", all[len(all)/2].Milliseconds(), all[0].Milliseconds(), all[len(all)-1].Milliseconds())
	}
	for _, w := range order {
		fmt.Fprintf(&b, "%s for %s, %d times: no node acknowledged writes for %s, 0 is less than %s; a client that waits %s for an answer had none for %s\n",
			w.kind, w.lasts, len(nobody[w]), spread(nobody[w]), 2*sampleEvery, opTimeout, spread(client[w]))
	}
	return b.String()
}

// staged are faults of scenarios alone.
func (n *nemesis) staged() map[string]strike {
	return map[string]strike{
		// The agent is asked to stop its server in good order and is killed, with the sentinel, before that is done.
		"killed while stopping": func(ctx context.Context, _ fault, t int) (func() error, error) {
			n.hold(t)
			all, err := processes(t)
			if err != nil {
				return nil, err
			}
			if err := signalAll(part(all, "agent", 0), syscall.SIGINT); err != nil {
				return nil, err
			}
			sleep(ctx, 30*time.Millisecond)
			err = errors.Join(signalAll(part(all, "agent", 0), syscall.SIGKILL), signalAll(part(all, "sentinel", 0), syscall.SIGKILL))
			return func() error { n.letGo(t); return nil }, err
		},
		"stop all agents": func(context.Context, fault, int) (func() error, error) {
			var errs []error
			for _, node := range n.f.nodes {
				n.hold(node.i)
				all, err := processes(node.i)
				errs = append(errs, err, signalAll(part(all, "agent", 0), syscall.SIGTERM))
			}
			return func() error {
				for _, node := range n.f.nodes {
					n.letGo(node.i)
				}
				return nil
			}, errors.Join(errs...)
		},
	}
}

// hold keeps an agent that ends from being started again, letGo ends that.
func (n *nemesis) hold(t int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.off[t]++
	n.f.nodes[t].setOff(true)
}

func (n *nemesis) letGo(t int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.off[t]--
	if n.off[t] == 0 {
		n.f.nodes[t].setOff(false)
	}
}

func listScenarios() string {
	var b strings.Builder
	for _, s := range scenarios {
		fmt.Fprintf(&b, "%-24s %s\n", s.name, s.incident)
	}
	return b.String()
}
