package fsm

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// Applied is what Machine.Apply answers: the entry's result, and the state right after it. A keepalive is answered by this
// state and by no other.
type Applied struct {
	Result
	State *State
}

// Machine adapts the pure state machine to raft.FSM. Raft calls it from one goroutine; readers take State from any.
type Machine struct {
	state   atomic.Pointer[State]
	publish func(prev, next *State)
	fatal   func(error)
	broken  error
}

// NewMachine starts with an empty state. publish is called after every entry, fatal when an entry is unknown to this binary;
// from then on the machine applies nothing.
func NewMachine(publish func(prev, next *State), fatal func(error)) *Machine {
	m := &Machine{publish: publish, fatal: fatal}
	m.state.Store(NewState())
	return m
}

// State is the newest state; it may be older than the leader's.
func (m *Machine) State() *State { return m.state.Load() }

// Apply implements raft.FSM.
func (m *Machine) Apply(l *raft.Log) any {
	prev := m.State()
	if m.broken != nil {
		return Applied{Result{Reason: m.broken.Error(), Fatal: true}, prev}
	}
	next, res := Apply(prev, l.Index, l.Data)
	if res.Fatal {
		m.broken = errors.New(res.Reason)
		m.fatal(m.broken)
		return Applied{res, prev}
	}
	m.state.Store(next)
	m.publish(prev, next)
	return Applied{res, next}
}

// Snapshot implements raft.FSM. The state is immutable, so taking it costs nothing.
func (m *Machine) Snapshot() (raft.FSMSnapshot, error) {
	if m.broken != nil {
		return nil, fmt.Errorf("snapshot: %w", m.broken)
	}
	return snapshot{m.State()}, nil
}

// Restore implements raft.FSM.
func (m *Machine) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }()
	s, err := ReadSnapshot(r)
	if err != nil {
		m.fatal(err)
		return err
	}
	prev := m.State()
	m.state.Store(s)
	m.publish(prev, s)
	return nil
}

type snapshot struct{ s *State }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := WriteSnapshot(sink, s.s); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}
