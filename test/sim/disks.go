package sim

import "time"

// hungLog keeps one node's Raft log from being written.
func (n *nemesis) hungLog(m *machine) {
	p := m.agent
	if p == nil || !n.take(m, "the disk of its Raft log hangs") {
		return
	}
	p.disk.shut()
	n.later(n.w.draw(200*time.Millisecond, 6*time.Second), func() { p.disk.open(); n.free(m) })
}

// hungDisk keeps PostgreSQL's log from being flushed.
func (n *nemesis) hungDisk(m *machine) {
	if !n.take(m, "the disk of PostgreSQL's log hangs") {
		return
	}
	n.stick(m, true)
	n.later(n.w.draw(200*time.Millisecond, 9*time.Second), func() { n.stick(m, false); n.free(m) })
}

func (n *nemesis) stick(m *machine, on bool) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	m.stuck = on
	if p := m.server.proc; p != nil {
		p.cond.Broadcast()
	}
}
