package agent

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// A small model of the protocol of docs/adr/0027-failsafe.md: one group of three, a fourth node that joins, a leader elsewhere that comes and
// goes, clocks within their drift, lost and late messages, restarted agents whose copy of the state is older than before. The leader
// grants a free lease to whoever is drawn, without any election. The parts under test are the real ones: fsm.Apply, lease.Lessor, leaseBox,
// wordBox, decide.Hold and decide.GiveWord.

// TestFailsafeModel: at no time may two servers write.
func TestFailsafeModel(t *testing.T) {
	runs, upheld, successions := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		m := newProtocol(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3)))
		for range rapid.IntRange(300, 1500).Draw(t, "steps") {
			m.step()
			if open := m.writers(); len(open) > 1 {
				t.Fatalf("at %s %v may write at once", m.now, open)
			}
		}
		runs, upheld, successions = runs+1, upheld+m.upheld, successions+m.promotions
	})
	if 5*upheld < runs || successions < runs {
		t.Errorf("%d times upheld, %d promotions in %d runs: the model shows nothing", upheld, successions, runs)
	}
}

// TestFailsafeModelFindsMistakes: without any one rule of the argument the schedule that it is there for makes two writers. With all
// rules the same schedules make none.
func TestFailsafeModelFindsMistakes(t *testing.T) {
	for _, tc := range []struct {
		name     string
		schedule func(*protocol)
		breaks   func(*protocol)
	}{
		{"anybody may be granted the lease", (*protocol).newcomerUnknown, func(m *protocol) { m.grantAnybody = true }},
		{"a word does not keep from promotion", (*protocol).holderCutOff, func(m *protocol) { m.wordsBindNobody = true }},
		{"a word is forgotten at a restart", (*protocol).membersRestart, func(m *protocol) { m.forgetful = true }},
		{"a restarted agent asks those it knows", (*protocol).holderRestarts, func(m *protocol) { m.askUnconfirmed = true }},
		{"members are taken in while words are out", (*protocol).newcomerMeanwhile, func(m *protocol) { m.takeInAnytime = true }},
		{"words count from their arrival", (*protocol).slowAnswers, func(m *protocol) { m.countFromArrival = true }},
		{"a word ends on the earlier clock", (*protocol).holderCutOff, func(m *protocol) { m.earlierClock = true }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for seed := range uint64(2000) {
				if at := play(seed, tc.schedule, func(*protocol) {}); at != 0 {
					t.Fatalf("seed %d: two writers at %s with all rules", seed, at)
				}
				if play(seed, tc.schedule, tc.breaks) != 0 {
					t.Logf("seed %d", seed)
					return
				}
			}
			t.Error("never noticed")
		})
	}
}

// play runs a schedule after a calm while, and answers when there were two writers.
func play(seed uint64, schedule, breaks func(*protocol)) time.Duration {
	m := newProtocol(rand.New(rand.NewPCG(seed, 4)))
	m.calm = true
	m.run(3 * time.Second)
	breaks(m)
	schedule(m)
	return m.run(15 * time.Second)
}

func (m *protocol) run(long time.Duration) time.Duration {
	for end := m.now + long; m.now < end; {
		m.step()
		if len(m.writers()) > 1 {
			return m.now
		}
	}
	return 0
}

func (m *protocol) holder() (int, *member) {
	for i, n := range m.nodes {
		if n.id == m.state().Groups[0].LastHolder {
			return i, n
		}
	}
	return -1, nil
}

func (m *protocol) join() { m.apply(fsm.Join{Node: m.nodeOf(protoNodes - 1), Token: "t"}) }

// holderCutOff: the majority is elsewhere and reaches everybody but the holder, which reaches the members.
func (m *protocol) holderCutOff() { _, h := m.holder(); h.near = false }

func (m *protocol) slowAnswers() { m.holderCutOff(); m.late = 0.4 }

// membersRestart: and their agents are started again now and then.
func (m *protocol) membersRestart() {
	m.holderCutOff()
	for i := range 20 {
		m.mail = append(m.mail, message{m.now + time.Duration(i)*600*time.Millisecond, func() {
			if n := m.nodes[m.any()]; n.id != m.state().Groups[0].LastHolder {
				m.restart(n)
			}
		}})
	}
}

// newcomerUnknown: a node joins that the holder cannot hear of, and is preferred.
func (m *protocol) newcomerUnknown() { m.holderCutOff(); m.join(); m.favour = protoNodes - 1 }

// holderRestarts: it had heard of the newcomer and taken it in, but its new agent's copy of the state is older.
func (m *protocol) holderRestarts() {
	before := len(m.log) - 1
	m.join()
	m.run(2 * time.Second)
	m.newcomerKnown(before)
}

func (m *protocol) newcomerKnown(before int) {
	i, h := m.holder()
	m.holderCutOff()
	m.favour = protoNodes - 1
	m.restart(h)
	h.copy = min(h.copy, before)
	m.cut[[2]int{min(i, m.favour), max(i, m.favour)}] = true
}

// newcomerMeanwhile: the holder hears the log, but none of its keepalives is answered; it hears of the newcomer while words are out, and
// cannot reach it.
func (m *protocol) newcomerMeanwhile() {
	i, h := m.holder()
	h.mute, m.favour = true, protoNodes-1
	m.cut[[2]int{min(i, m.favour), max(i, m.favour)}] = true
	m.mail = append(m.mail, message{m.now + 1500*time.Millisecond + time.Duration(m.rng.Int64N(int64(time.Second))), m.join})
}

const (
	protoNodes = 4
	protoTTL   = 5 * time.Second
)

// member is one node of the model.
type member struct {
	id        fsm.NodeID
	raw, boot float64 // rates
	copy      int     // how much of the log its state has
	run       int     // of its agent
	lease     *leaseBox
	word      *wordBox
	disk      decide.Local
	bound     fsm.Epoch // of its sentinel
	end       lease.Stamp
	used      fsm.Epoch // newest epoch ever bound
	near      bool      // reaches the leader
	mute      bool      // but its keepalives do not
	asking    *question
}

type question struct {
	asked lease.Stamp
	epoch fsm.Epoch
	of    []fsm.NodeID
	open  map[fsm.NodeID]bool

	patience time.Duration
}

// Local and SetWord implement wordStore.
func (n *member) Local() (decide.Local, error) { return n.disk, nil }

func (n *member) SetWord(length time.Duration) error { n.disk.Word = length; return nil }

type message struct {
	at time.Duration
	do func()
}

type protocol struct {
	rng    *rand.Rand
	now    time.Duration
	nodes  []*member
	log    []*fsm.State
	lessor *lease.Lessor // nil: no leader
	leader int           // whose clock it has
	mail   []message
	cut    map[[2]int]bool
	upheld int // times that words prolonged a lease
	reqs   int

	promotions int

	calm   bool    // nothing breaks by itself
	favour int     // granted first, when a member; 0: drawn
	late   float64 // how many messages take seconds

	grantAnybody, wordsBindNobody, forgetful, askUnconfirmed, takeInAnytime, countFromArrival, earlierClock bool
}

func newProtocol(rng *rand.Rand) *protocol {
	m := &protocol{rng: rng, late: 0.05, cut: map[[2]int]bool{}}
	for i := range protoNodes {
		n := &member{
			id: fsm.NodeID('a' + rune(i)), raw: 1 + (rng.Float64()*2-1)*lease.Drift/1000, boot: 1 + (rng.Float64()*2-1)*0.2, near: true,
			lease: &leaseBox{}, word: newWordBox(), disk: decide.Local{Lineage: map[fsm.Timeline]fsm.Epoch{}},
		}
		n.word.tend(m.clock(n), n)
		m.nodes = append(m.nodes, n)
	}
	m.log = []*fsm.State{fsm.NewState()}
	settings := fsm.DefaultSettings()
	m.apply(fsm.Bootstrap{ClusterID: "x", Incarnation: 1, Settings: settings, Node: m.nodeOf(0), Token: &fsm.Token{ID: "t", Uses: 9}})
	for i := range protoNodes - 1 {
		if i > 0 {
			m.apply(fsm.Join{Node: m.nodeOf(i), Token: "t"})
		}
	}
	m.apply(fsm.Claim{Node: "a"})
	m.apply(fsm.Initialised{Node: "a", SystemID: "s", Timeline: 1})
	m.apply(fsm.GroupSet{Mode: fsm.Off, Failsafe: new(true)})
	m.elect(0)
	return m
}

func (m *protocol) nodeOf(i int) fsm.Node {
	return fsm.Node{ID: m.nodes[i].id, Name: string(m.nodes[i].id), Peer: fmt.Sprint("p", i), Postgres: fmt.Sprint("q", i), Protocol: fsm.Protocol}
}

func (m *protocol) clock(n *member) lease.Clock {
	return func() lease.Stamp {
		return lease.Stamp{Raw: time.Hour + time.Duration(float64(m.now)*n.raw), Boot: time.Hour + time.Duration(float64(m.now)*n.boot)}
	}
}

func (m *protocol) read(n *member) lease.Stamp { return m.clock(n)() }
func (m *protocol) state() *fsm.State          { return m.log[len(m.log)-1] }
func (m *protocol) chance(p float64) bool      { return m.rng.Float64() < p }
func (m *protocol) any() int                   { return m.rng.IntN(protoNodes) }

// apply appends an entry; only a leader calls it.
func (m *protocol) apply(c fsm.Command) fsm.Result {
	m.reqs++
	data, err := fsm.Encode(c, fmt.Sprint("r", m.reqs), time.Unix(0, 0))
	if err != nil {
		panic(err)
	}
	s := m.state()
	if _, grant := c.(fsm.GrantCmd); grant && m.grantAnybody {
		free := *s
		g := s.Groups[0]
		g.Eligible = nil
		free.Groups = map[fsm.GroupID]fsm.Group{0: g}
		s = &free
	}
	next, res := fsm.Apply(s, uint64(len(m.log)), data)
	m.log = append(m.log, next)
	if m.lessor != nil {
		m.lessor.Applied(m.read(m.nodes[m.leader]), next)
	}
	return res
}

func (m *protocol) elect(i int) {
	m.leader = i
	m.lessor = lease.NewLessor(m.read(m.nodes[i]), m.state())
}

// post delivers later, or never.
func (m *protocol) post(do func()) {
	if !m.calm && m.chance(0.03) {
		return
	}
	wait := time.Duration(m.rng.Int64N(int64(60 * time.Millisecond)))
	if m.chance(m.late) {
		wait = time.Duration(m.rng.Int64N(int64(7 * time.Second)))
	}
	m.mail = append(m.mail, message{m.now + wait, do})
}

// step lets a moment pass and something happen.
func (m *protocol) step() {
	m.pass(time.Duration(m.rng.Int64N(int64(80 * time.Millisecond))))
	for i, n := range m.nodes {
		if m.chance(0.25) {
			m.beat(n)
		}
		if m.chance(0.25) {
			m.hold(i, n)
		}
		if m.chance(0.3) {
			m.act(n)
		}
		if n.near && m.lessor != nil && m.chance(0.4) && n.copy < len(m.log)-1 {
			n.copy += 1 + m.rng.IntN(len(m.log)-1-n.copy)
		}
	}
	if m.lessor != nil {
		m.lead()
	}
	if !m.calm {
		m.harm()
	}
}

// pass moves time to each message in turn, and lets sentinels fence.
func (m *protocol) pass(d time.Duration) {
	for end := m.now + d; ; {
		next, at := -1, end
		for i, x := range m.mail {
			if x.at <= at {
				next, at = i, x.at
			}
		}
		m.now = max(m.now, at)
		for _, n := range m.nodes {
			if !n.bound.IsZero() && !m.mayWrite(n) {
				n.bound = fsm.Epoch{}
			}
		}
		if next < 0 {
			return
		}
		do := m.mail[next].do
		m.mail = append(m.mail[:next:next], m.mail[next+1:]...)
		do()
	}
}

func (m *protocol) mayWrite(n *member) bool {
	now := m.read(n)
	return !n.bound.IsZero() && now.Raw < n.end.Raw && now.Boot < n.end.Boot
}

func (m *protocol) writers() (open []fsm.NodeID) {
	for _, n := range m.nodes {
		if m.mayWrite(n) {
			open = append(open, n.id)
		}
	}
	return open
}

// beat sends a keepalive as the copy of the state wants it.
func (m *protocol) beat(n *member) {
	l := m.log[n.copy].Groups[0].Lease
	if l.Holder != n.id {
		return
	}
	sent, run := m.read(n), n.run
	m.post(func() {
		if m.lessor == nil || !n.near || n.mute {
			return
		}
		m.lessor.Enter(m.read(m.nodes[m.leader]), m.state().Groups[0], l.Epoch, "i-"+string(n.id))
		got, held := lease.Answer(m.state(), 0, n.id, "i-"+string(n.id), l.Epoch)
		index := m.state().Index
		m.post(func() {
			if !held || n.run != run {
				return
			}
			if until, moved := n.lease.answered(sent, "i-"+string(n.id), Answer{Held: true, Lease: got, Index: index}); moved {
				m.tell(n, got.Epoch, until)
			}
		})
	})
}

// tell hands a deadline to the sentinel.
func (m *protocol) tell(n *member, e fsm.Epoch, until lease.Stamp) {
	if n.bound == e && m.mayWrite(n) {
		n.end = lease.Stamp{Raw: max(n.end.Raw, until.Raw), Boot: max(n.end.Boot, until.Boot)}
	}
}

// hold is Agent.hold.
func (m *protocol) hold(i int, n *member) {
	s := m.log[n.copy]
	g := s.Groups[0]
	asked := m.read(n)
	rule := decide.Hold(decide.HoldView{
		Self: n.id, State: s, Instance: "i-" + string(n.id), LeaseLeft: n.lease.left("i-"+string(n.id), g.Lease.Epoch, asked),
		Sentinel:  decide.Sentinel{Connected: true, Postmaster: 1, Primary: m.mayWrite(n), Epoch: n.bound},
		Confirmed: m.askUnconfirmed || n.lease.confirmed("i-"+string(n.id), g.Lease.Epoch, s.Index),
	})
	if !rule.Ask || n.asking != nil && m.now < n.asking.patience {
		return
	}
	q := &question{asked: asked, epoch: g.Lease.Epoch, of: membersOf(s, 0), open: map[fsm.NodeID]bool{}, patience: m.now + 500*time.Millisecond + time.Duration(m.rng.Int64N(int64(3*time.Second)))}
	n.asking = q
	for j, o := range m.nodes {
		if _, known := s.Nodes[o.id]; !known || o == n {
			continue
		}
		q.open[o.id] = true
		m.post(func() {
			if m.cut[[2]int{min(i, j), max(i, j)}] || !m.answer(o, decide.WordRequest{Holder: n.id, Epoch: q.epoch, Length: protoTTL}) {
				return
			}
			m.post(func() { m.answered(n, o, q) })
		})
	}
	m.complete(n, q)
}

func (m *protocol) answered(n, o *member, q *question) {
	if n.asking == q {
		delete(q.open, o.id)
		m.complete(n, q)
	}
}

func (m *protocol) complete(n *member, q *question) {
	if len(q.open) > 0 {
		return
	}
	n.asking = nil
	asked := q.asked
	if m.countFromArrival {
		asked = m.read(n)
	}
	instance := "i-" + string(n.id)
	if m.askUnconfirmed && n.lease.h != nil {
		n.lease.epoch = q.epoch
	}
	if until, moved := n.lease.extend(asked, m.read(n), instance, q.epoch, protoTTL, q.of); moved {
		m.upheld++
		m.tell(n, q.epoch, until)
	}
}

// answer is Agent.Word.
func (m *protocol) answer(o *member, r decide.WordRequest) bool {
	v := decide.WordView{
		Self: o.id, State: m.log[o.copy], Hears: -1, Local: o.disk, Sentinel: decide.Sentinel{Connected: true, Primary: m.mayWrite(o), Epoch: o.bound}, Asked: r,
	}
	if _, member := v.State.Nodes[o.id]; !member {
		v.State = m.state() // it knows itself
	}
	if rule, _ := decide.GiveWord(v); !rule.Give {
		return false
	}
	return o.word.give(m.read(o), r.Length, o) == nil
}

// act does what the agent's loop does for a holder.
func (m *protocol) act(n *member) {
	n.word.tend(m.clock(n), n)
	s := m.log[n.copy]
	g, instance, now := s.Groups[0], "i-"+string(n.id), m.read(n)
	e := g.Lease.Epoch
	if g.Lease.Holder != n.id {
		if !n.bound.IsZero() && n.bound.Less(g.Epoch) {
			n.bound = fsm.Epoch{} // R112
		}
		return
	}
	switch last, _ := g.LastGrant(); {
	case n.bound.IsZero() && n.used.Less(e) && n.lease.left(instance, e, now) > time.Second:
		m.promote(n, e, now)
	case n.bound != e:
	case last.Timeline == 0:
		m.propose(n, fsm.Promoted{Epoch: e, Timeline: fsm.Timeline(e.N + 1), Parent: 1})
	case !g.Opened():
		m.propose(n, fsm.SyncConfirm{Epoch: e})
	case g.Failsafe || g.Eligible != nil:
		nodes := membersOf(s, 0)
		if len(g.Eligible) == len(nodes) {
			return
		}
		if n.lease.confirmed(instance, e, s.Index) && (m.takeInAnytime || n.lease.leased(instance, e, s.Index) && n.lease.offer(instance, e, nodes)) {
			m.propose(n, fsm.EligibleSet{Epoch: e, Nodes: nodes})
		}
	}
}

func (m *protocol) promote(n *member, e fsm.Epoch, now lease.Stamp) {
	if !m.wordsBindNobody && (!m.earlierClock || !n.word.loaded || n.word.word.Left(m.earlier(n)) > 0) {
		leave, err := n.word.enter(now)
		if err != nil {
			return
		}
		defer leave()
	}
	n.disk.Lineage = map[fsm.Timeline]fsm.Epoch{0: e}
	_, until, _ := n.lease.h.Until()
	n.bound, n.used, n.end = e, e, until
	m.promotions++
}

// earlier is a reading in which both clocks show what the faster one does.
func (m *protocol) earlier(n *member) lease.Stamp {
	s := m.read(n)
	fast := max(s.Raw, s.Boot)
	return lease.Stamp{Raw: fast, Boot: fast}
}

// propose reaches the leader of then, whatever became of the proposer.
func (m *protocol) propose(n *member, c fsm.Command) {
	m.post(func() {
		if m.lessor != nil && n.near {
			m.apply(c)
		}
	})
}

// lead expires and grants.
func (m *protocol) lead() {
	now := m.read(m.nodes[m.leader])
	for _, x := range m.lessor.Expired(now) {
		m.apply(x)
	}
	g := m.state().Groups[0]
	if g.Held() || !m.chance(0.3) {
		return
	}
	n := m.nodes[m.any()]
	if m.favour > 0 {
		n = m.nodes[m.favour]
	}
	if _, known := m.state().Nodes[n.id]; known {
		m.apply(fsm.GrantCmd{Prev: g.Epoch, Holder: n.id, Instance: "i-" + string(n.id), TTL: protoTTL})
	}
}

// harm breaks and mends.
func (m *protocol) harm() {
	n := m.nodes[m.any()]
	switch dice := m.rng.IntN(1000); {
	case dice < 4:
		m.lessor = nil
	case dice < 6:
		m.holderCutOff()
	case dice < 20 && m.lessor == nil:
		m.elect(m.any())
	case dice < 28:
		n.near = !n.near
	case dice < 30:
		n.mute = !n.mute
	case dice < 34:
		for _, o := range m.nodes {
			o.near = m.chance(0.5)
		}
	case dice < 40:
		i, j := m.any(), m.any()
		m.cut[[2]int{min(i, j), max(i, j)}] = m.chance(0.3)
	case dice < 55:
		m.restart(n)
	case dice < 60 && m.lessor != nil && len(m.state().Nodes) < protoNodes:
		m.apply(fsm.Join{Node: m.nodeOf(protoNodes - 1), Token: "t"})
	case dice < 62 && m.lessor != nil:
		m.apply(fsm.GroupSet{Failsafe: new(m.chance(0.7))})
	case dice < 66 && !n.bound.IsZero():
		e := n.bound
		n.bound = fsm.Epoch{} // PostgreSQL ends
		m.propose(n, fsm.Release{Epoch: e})
	}
}

// restart is a new agent: its copy of the state is older, and what it held in memory is gone.
func (m *protocol) restart(n *member) {
	n.run++
	n.asking, n.lease, n.word = nil, &leaseBox{}, newWordBox()
	n.copy -= m.rng.IntN(min(n.copy, 40) + 1)
	if !n.bound.IsZero() {
		n.lease.restore("i-"+string(n.id), n.bound, n.end)
	}
	if m.forgetful {
		n.disk.Word = 0
	}
	n.word.tend(m.clock(n), n)
}
