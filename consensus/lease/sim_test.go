package lease

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"matriarch/fsm"
)

// TestNeverTwoValid drives Holders and Lessors through drifting clocks, pauses, lost, delayed and reordered messages, changes
// of leader and of the ttl, and checks at every step of real time that at most one holder counts itself valid.
//
// The log is a list: an entry is proposed by the leader of a term into that term's branch and applied once it is committed. A new
// leader's log has everything that was committed; what was not may be in it or not.
func TestNeverTwoValid(t *testing.T) {
	seeds := uint64(400)
	if testing.Short() {
		seeds = 50
	}
	grants := 0
	for seed := range seeds {
		m := newModel(seed)
		for range 4000 {
			m.step()
			if valid := m.valid(); len(valid) > 1 {
				t.Fatalf("seed %d: at %s %v are valid at once", seed, m.now, valid)
			}
		}
		grants += m.grants
	}
	if grants < int(seeds)*3 {
		t.Fatalf("only %d grants in %d seeds: the simulation shows nothing", grants, seeds)
	}
}

// TestTheModelFindsMistakes: with a rule of the argument broken, some seed must show two valid holders.
func TestTheModelFindsMistakes(t *testing.T) {
	for name, breaks := range map[string]func(*model){
		"the deadline moves when the answer leaves": func(m *model) { m.lateMove = true },
		"a new leader expires at once":              func(m *model) { m.noFullTTL = true },
		"answers are counted from their arrival":    func(m *model) { m.countFromArrival = true },
		"answered before committed":                 func(m *model) { m.answerEarly = true },
	} {
		found := false
		for seed := range uint64(3000) {
			m := newModel(seed)
			breaks(m)
			for i := 0; i < 4000 && !found; i++ {
				m.step()
				found = len(m.valid()) > 1
			}
			if found {
				break
			}
		}
		if !found {
			t.Errorf("%s: never noticed", name)
		}
	}
}

const (
	modelStep  = 20 * time.Millisecond
	modelNodes = 3
)

type mclock struct {
	rate      float64
	raw, boot time.Duration
}

type keepalive struct {
	node    int
	sent    Stamp
	epoch   fsm.Epoch
	lease   fsm.Lease
	deliver time.Duration
}

type logEntry struct {
	term   int
	cmd    any // fsm.GrantCmd, fsm.Expire or []keepalive
	commit time.Duration
}

type model struct {
	rng    *rand.Rand
	now    time.Duration
	clocks [modelNodes]mclock
	paused [modelNodes]time.Duration // until

	holders [modelNodes]*Holder
	toLead  []keepalive // on the way to the leader
	back    []keepalive

	term    int
	leader  int // the node whose clock the leader has
	ready   bool
	readyAt time.Duration
	lessor  *Lessor
	pending []logEntry // proposed in this term, not committed
	state   *fsm.State
	ttl     time.Duration
	grants  int
	mute    fsm.Epoch // of a holder that is cut off for good

	lateMove, noFullTTL, countFromArrival, answerEarly bool
}

func newModel(seed uint64) *model {
	m := &model{rng: rand.New(rand.NewPCG(seed, 1)), state: fsm.NewState(), ttl: 2 * time.Second, term: 1, readyAt: time.Second}
	for i := range m.clocks {
		m.clocks[i] = mclock{rate: 1 + (m.rng.Float64()*2-1)*Drift/1000, raw: time.Duration(m.rng.Int64N(1e12)), boot: time.Duration(m.rng.Int64N(1e12))}
		m.holders[i] = NewHolder(fmt.Sprint("i", i))
	}
	m.state.Groups[0] = fsm.Group{SystemID: "x"}
	return m
}

func (m *model) chance(p float64) bool { return m.rng.Float64() < p }

func (m *model) delay() time.Duration {
	if m.chance(0.1) {
		return time.Duration(m.rng.Int64N(int64(6 * time.Second)))
	}
	return time.Duration(m.rng.Int64N(int64(50 * time.Millisecond)))
}

func (m *model) stamp(i int) Stamp { return Stamp{m.clocks[i].raw, m.clocks[i].boot} }

func (m *model) valid() []int {
	var out []int
	for i, h := range m.holders {
		e, _, ok := h.Until()
		if ok && h.Left(e, m.stamp(i)) > 0 {
			out = append(out, i)
		}
	}
	return out
}

func (m *model) step() {
	m.now += modelStep
	for i := range m.clocks {
		d := time.Duration(float64(modelStep) * m.clocks[i].rate)
		m.clocks[i].raw += d
		m.clocks[i].boot += d
		if m.chance(0.004) {
			m.paused[i] = m.now + time.Duration(m.rng.Int64N(int64(4*time.Second)))
		}
	}
	m.beats()
	m.lead()
	m.commit()
	m.back = slices.DeleteFunc(m.back, func(k keepalive) bool {
		if k.deliver > m.now || m.paused[k.node] > m.now {
			return false
		}
		sent := k.sent
		if m.countFromArrival {
			sent = m.stamp(k.node)
		}
		m.holders[k.node].Answered(sent, k.lease.Instance, k.lease.Epoch, k.lease.TTL)
		return true
	})
}

// beats: every holder by the state sends a keepalive now and then; some are lost. A holder stops of itself sometimes.
func (m *model) beats() {
	l := m.state.Groups[0].Lease
	if m.chance(0.01) {
		m.mute = l.Epoch
	}
	for i := range m.holders {
		if l.Epoch != m.mute && l.Holder == fsm.NodeID(fmt.Sprint(i)) && m.paused[i] <= m.now && m.chance(0.2) && !m.chance(0.3) {
			m.toLead = append(m.toLead, keepalive{node: i, sent: m.stamp(i), epoch: l.Epoch, deliver: m.now + m.delay()})
		}
	}
}

// lead is the leader's goroutine: a keepalive enters an entry, an expired lease is expired, a free one granted.
func (m *model) lead() {
	if m.chance(0.003) { // another leader: what was pending is perhaps kept
		m.term++
		keep := m.rng.IntN(len(m.pending) + 1)
		m.pending = m.pending[:keep]
		for i := range m.pending {
			if batch, ok := m.pending[i].cmd.([]keepalive); ok { // nobody waits for these any more
				m.pending[i].cmd = batch[:0]
			}
		}
		m.leader, m.ready, m.readyAt = m.rng.IntN(modelNodes), false, m.now+time.Duration(m.rng.Int64N(int64(2*time.Second)))
	}
	if m.paused[m.leader] > m.now {
		return
	}
	now := m.stamp(m.leader)
	if !m.ready {
		if m.now >= m.readyAt && len(m.pending) == 0 {
			m.ready, m.lessor = true, NewLessor(now, m.state)
			if m.noFullTTL {
				m.lessor = NewLessor(now.Add(-m.ttl), m.state)
			}
		}
		return
	}
	m.lessor.Applied(now, m.state)
	g := m.state.Groups[0]
	var batch []keepalive
	m.toLead = slices.DeleteFunc(m.toLead, func(k keepalive) bool {
		if k.deliver > m.now {
			return false
		}
		if !m.lateMove {
			m.lessor.Enter(now, g, k.epoch, fmt.Sprint("i", k.node))
		}
		batch = append(batch, k)
		return true
	})
	if len(batch) > 0 {
		if m.answerEarly {
			m.answer(batch)
		}
		m.propose(batch)
	}
	for _, e := range m.lessor.Expired(now) {
		m.propose(e)
	}
	if !g.Held() && m.chance(0.05) {
		w := m.rng.IntN(modelNodes)
		if m.chance(0.1) {
			m.ttl = time.Duration(1500+m.rng.IntN(2000)) * time.Millisecond
		}
		m.propose(fsm.GrantCmd{Prev: g.Epoch, Holder: fsm.NodeID(fmt.Sprint(w)), Instance: fmt.Sprint("i", w), TTL: m.ttl})
	}
}

func (m *model) propose(cmd any) {
	at := m.now + m.delay()
	if n := len(m.pending); n > 0 {
		at = max(at, m.pending[n-1].commit)
	}
	m.pending = append(m.pending, logEntry{m.term, cmd, at})
}

// commit applies entries in order. Only the answer of an entry's own term reaches anybody.
func (m *model) commit() {
	for len(m.pending) > 0 && m.pending[0].commit <= m.now {
		e := m.pending[0]
		m.pending = m.pending[1:]
		g := m.state.Groups[0]
		switch c := e.cmd.(type) {
		case fsm.GrantCmd:
			if !g.Held() && g.Epoch == c.Prev {
				g.Epoch.N++
				g.Lease = fsm.Lease{Holder: c.Holder, Instance: c.Instance, Epoch: g.Epoch, TTL: c.TTL}
				m.grants++
			}
		case fsm.Expire:
			if g.Held() && g.Epoch == c.Epoch {
				g.Lease = fsm.Lease{}
			}
		case []keepalive:
			if e.term == m.term && !m.answerEarly {
				m.answer(c)
			}
		}
		s := *m.state
		s.Groups = map[fsm.GroupID]fsm.Group{0: g}
		m.state = &s
	}
}

func (m *model) answer(batch []keepalive) {
	for _, k := range batch {
		id, instance := fsm.NodeID(fmt.Sprint(k.node)), fmt.Sprint("i", k.node)
		l, ok := Answer(m.state, 0, id, instance, k.epoch)
		if !ok {
			continue
		}
		if m.lateMove && m.ready {
			m.lessor.Enter(m.stamp(m.leader), m.state.Groups[0], k.epoch, instance)
		}
		if m.chance(0.2) {
			continue // lost
		}
		k.lease, k.deliver = l, m.now+m.delay()
		m.back = append(m.back, k)
	}
}
