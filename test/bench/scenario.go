package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	calmBefore = 2 * time.Second        // of operations before the event, to compare with
	calmAfter  = 2 * time.Second        // at least, after it
	steadyOps  = 30                     // successes in a row after which a client counts as undisturbed
	outageWait = 150 * time.Second      // how long clients may be disturbed
	respawn    = 200 * time.Millisecond // after which a service manager starts a killed agent again
	spacing    = 31 * time.Second       // between two failures of one group: a second one so soon is another question
	dirtyMB    = 50
)

// scenario is one event under load.
type scenario struct {
	Name  string
	Title string
	group int
	kinds []kind
	dirty int // megabytes to write before it
	kill  string
	leads bool          // the node that is hit also leads Raft, where the manager has its log in its nodes
	hold  time.Duration // stopped by SIGSTOP for so long, and not killed
	watch time.Duration // at least, after the event
}

const everything = "node" // what kill names for all of a node's processes

// strikes reports whether the group loses its primary without having been asked.
func (sc scenario) strikes() bool { return sc.kill == "postmaster" || sc.kill == everything }

func scenarios() []scenario {
	return []scenario{
		{Name: "worker-switchover", Title: "worker switchover", group: struckWorker},
		{Name: "worker-switchover-dirty", Title: fmt.Sprintf("worker switchover, %d MB of dirty buffers", dirtyMB), group: struckWorker, dirty: dirtyMB},
		{Name: "worker-switchover-busy", Title: "worker switchover under transactions of 20 ms", group: struckWorker, kinds: busyKinds()},
		{Name: "coordinator-switchover", Title: "coordinator switchover", group: coordinator},
		{Name: "postmaster-kill", Title: "postmaster of a worker primary killed", group: struckWorker, kill: "postmaster"},
		{Name: "coordinator-node-kill", Title: "node of the coordinator primary killed", group: coordinator, kill: everything},
		{Name: "worker-node-kill", Title: "node of a worker primary killed", group: struckWorker, kill: everything},
		{Name: "coordinator-leader-kill", Title: "node of the coordinator primary killed, which led Raft", group: coordinator, kill: everything, leads: true},
		{Name: "worker-leader-kill", Title: "node of a worker primary killed, which led Raft", group: struckWorker, kill: everything, leads: true},
		{Name: "agent-kill", Title: "agent of a worker primary killed, started again after 200 ms", group: struckWorker, kill: "agent", watch: 8 * time.Second},
		{Name: "agent-stop", Title: "agent of a worker primary stopped by SIGSTOP for 2 s", group: struckWorker, kill: "agent", hold: 2 * time.Second, watch: 8 * time.Second},
	}
}

// choose finds scenarios by name; none named means all.
func choose(names string) ([]scenario, error) {
	all := scenarios()
	if names == "" {
		return all, nil
	}
	var out []scenario
	for name := range strings.FieldsFuncSeq(names, func(r rune) bool { return r == ',' || r == ' ' }) {
		i := slices.IndexFunc(all, func(s scenario) bool { return s.Name == name })
		if i < 0 {
			var known []string
			for _, s := range all {
				known = append(known, s.Name)
			}
			return nil, fmt.Errorf("there is no scenario %q: there are %s", name, strings.Join(known, ", "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

// run is what one event did.
type run struct {
	System   string         `json:"system"`
	Scenario string         `json:"scenario"`
	N        int            `json:"n"`
	At       time.Time      `json:"at"`
	Victim   string         `json:"victim"`
	Load     load           `json:"load"`
	TookMS   float64        `json:"took_ms,omitempty"` // the command of the operator, from call to return
	Switched switched       `json:"switched,omitzero"`
	WholeMS  float64        `json:"whole_ms,omitempty"` // until everything was redundant again: from the event, or from the start of the killed node
	LateMS   float64        `json:"late_ms"`            // until acknowledged rows could all be read, from the formation being whole
	Clients  []clientResult `json:"clients,omitempty"`
	Failed   string         `json:"failed,omitempty"` // why it counts for nothing

	samples [][]sample // of the clients, for the picture
	shown   time.Duration
}

// stage is a formation with its tables.
type stage struct {
	formation
	name    string
	coord   []string // hosts that lead clients to the coordinator's primary
	slots   []int
	citus   string
	runs    int64
	lastHit map[int]time.Time

	redundant <-chan time.Duration // of this run
}

// play carries out one run: load, event, load again, repair, count.
func (st *stage) play(ctx context.Context, sc scenario, n int) (r run, err error) {
	r = run{System: st.name, Scenario: sc.Name, N: n}
	if err := st.ready(ctx, sc); err != nil {
		return r, err
	}
	if r.Victim, err = st.primary(ctx, sc.group); err != nil {
		return r, err
	}
	st.runs++
	first := st.runs * perClient * 100
	clients, err := st.clients(sc, first)
	if err != nil {
		return r, err
	}
	for _, c := range clients {
		c.start(ctx)
	}
	stop := func() {
		for _, c := range clients {
			c.cancel()
		}
		for _, c := range clients {
			c.stop()
		}
	}
	defer stop()
	if err := steady(ctx, clients, calmBefore); err != nil {
		return r, fmt.Errorf("before the event: %w", err)
	}
	if sc.leads {
		if err := st.lead(ctx, r.Victim); err != nil {
			return r, err
		}
	}
	r.Load, r.At = readLoad(), time.Now()
	if err := st.strike(ctx, sc, &r); err != nil {
		return r, err
	}
	err = steady(ctx, clients, max(calmAfter, sc.watch))
	ended := time.Now()
	stop()
	if err != nil {
		return r, fmt.Errorf("after the event: %w", err)
	}
	for _, c := range clients {
		r.Clients = append(r.Clients, c.result(r.At, ended))
		r.samples = append(r.samples, c.samples)
	}
	r.shown = ended.Sub(r.At)
	return r, st.settle(ctx, sc, &r, clients, first)
}

// ready waits for a formation that has not been hit too lately, and prepares what the scenario needs.
func (st *stage) ready(ctx context.Context, sc scenario) error {
	if err := st.whole(ctx); err != nil {
		return err
	}
	if hit, ok := st.lastHit[sc.group]; ok && !sleep(ctx, spacing-time.Since(hit)) {
		return ctx.Err()
	}
	if sc.leads {
		if err := st.placeVoter(ctx, sc.group); err != nil {
			return err
		}
	}
	if sc.dirty == 0 {
		return nil
	}
	dsn, err := st.dsn(st.hosts(sc.group))
	if err != nil {
		return err
	}
	if err := dirtyPages(ctx, dsn, sc.dirty); err != nil {
		return err
	}
	return st.whole(ctx)
}

// placeVoter has a node as the group's primary that can lead; not every node has a vote.
func (st *stage) placeVoter(ctx context.Context, group int) error {
	p, err := st.primary(ctx, group)
	if err != nil {
		return err
	}
	if ok, err := st.votes(ctx, p); ok || err != nil {
		return err
	}
	if _, err := st.switchover(ctx, group); err != nil {
		return err
	}
	return st.whole(ctx)
}

func (st *stage) clients(sc scenario, first int64) ([]*client, error) {
	var out []*client
	for i, k := range append(kinds(), sc.kinds...) {
		hosts := st.hosts(k.entry)
		if k.entry == coordinator && len(st.coord) > 0 {
			hosts = st.coord
		}
		dsn, err := st.dsn(hosts)
		if err != nil {
			return nil, err
		}
		out = append(out, &client{kind: k, dsn: dsn, slots: st.slots, first: first + int64(i)*perClient})
	}
	return out, nil
}

// steady waits until every client has succeeded for a while without an error, for at least that long.
func steady(ctx context.Context, clients []*client, least time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, outageWait)
	defer cancel()
	for _, c := range clients {
		c.restart()
	}
	for began := time.Now(); ; {
		rough := slices.IndexFunc(clients, func(c *client) bool { return !c.steady(steadyOps) })
		if rough < 0 && time.Since(began) >= least {
			return nil
		}
		if !sleep(ctx, 20*time.Millisecond) {
			if rough < 0 {
				return ctx.Err()
			}
			return fmt.Errorf("%q is still disturbed after %s: %w", clients[rough].name, outageWait, ctx.Err())
		}
	}
}

func (st *stage) strike(ctx context.Context, sc scenario, r *run) (err error) {
	defer func() { r.TookMS = ms(time.Since(r.At)) }()
	switch sc.kill {
	case "":
		r.Switched, err = st.switchover(ctx, sc.group)
		return err
	case "agent":
		if sc.hold > 0 {
			return st.freeze(ctx, r.Victim, sc.hold)
		}
		if err := st.kill(ctx, r.Victim, sc.kill); err != nil {
			return err
		}
		if !sleep(ctx, respawn) {
			return ctx.Err()
		}
		return st.start(ctx, r.Victim)
	case everything:
		return st.kill(ctx, r.Victim, "")
	}
	if err := st.kill(ctx, r.Victim, sc.kill); err != nil {
		return err
	}
	st.redundant = st.watch(ctx, r.At)
	return nil
}

// watch tells how long after an instant the formation was whole again; 0: it was not. In the first second nobody may have noticed yet.
func (st *stage) watch(ctx context.Context, from time.Time) <-chan time.Duration {
	out := make(chan time.Duration, 1)
	go func() {
		sleep(ctx, time.Second)
		if err := st.whole(ctx); err != nil {
			out <- 0
			return
		}
		out <- time.Since(from)
	}()
	return out
}

// settle brings a killed node back and counts once the formation is whole.
func (st *stage) settle(ctx context.Context, sc scenario, r *run, clients []*client, first int64) error {
	if sc.strikes() {
		st.lastHit[sc.group] = r.At
	}
	if sc.kill == everything {
		st.redundant = st.watch(ctx, time.Now())
		if err := st.start(ctx, r.Victim); err != nil {
			return err
		}
	}
	if err := st.whole(ctx); err != nil {
		return err
	}
	if sc.strikes() {
		if r.WholeMS = ms(<-st.redundant); r.WholeMS == 0 {
			return errors.New("the formation was whole, but its watcher did not see that")
		}
	}
	var err error
	if sc.kill == "" {
		if r.Switched.Pause, err = st.pauseParts(r.At); err != nil {
			return err
		}
	}
	dsn, err := st.dsn(st.hosts(coordinator))
	if err != nil {
		return err
	}
	late, err := countLost(ctx, dsn, first, clients, r.Clients)
	r.LateMS = ms(late)
	return err
}
