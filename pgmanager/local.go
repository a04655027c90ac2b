package pgmanager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"matriarch/fsm"
)

// ErrPromised means that this node has promised a newer epoch than the one asked for.
var ErrPromised = errors.New("a newer epoch is promised")

// ErrUnfinished means that a clone or rewind of the data directory did not end: it may be neither started nor trusted.
var ErrUnfinished = errors.New("an unfinished clone or rewind")

// Unfinished marks a data directory under construction.
type Unfinished struct {
	Kind  string    `json:"kind"` // clone or rewind
	Since time.Time `json:"since"`
	// Prefix: a clone that will set aside nothing that its group has not.
	Prefix bool `json:"prefix,omitempty"`
	// Why: the error of a rewind that failed; empty when it was interrupted.
	Why string `json:"why,omitempty"`
}

// Local is the node's durable record about its data directory, kept outside of it.
type Local struct {
	Promise    fsm.Epoch                  `json:"promise"`           // nothing below it is followed any more
	Lineage    map[fsm.Timeline]fsm.Epoch `json:"lineage,omitempty"` // which epoch made each timeline held here
	Unfinished *Unfinished                `json:"unfinished,omitempty"`
	SystemID   string                     `json:"system_id,omitempty"`
	Word       time.Duration              `json:"word_ns,omitempty"` // it gave a primary its word to stay a standby for so long, and it may still be out
	ReadySlots *ReadySlots                `json:"ready_slots,omitempty"`
}

// ReadySlots are copies of logical slots that a promotion may keep, if the epoch followed before it was this one.
type ReadySlots struct {
	Epoch fsm.Epoch `json:"epoch"`
	Names []string  `json:"names"`
}

// Under are the names that hold for who follows, or followed last, the epoch.
func (r *ReadySlots) Under(e fsm.Epoch) []string {
	if r == nil || r.Epoch != e {
		return nil
	}
	return r.Names
}

func (m *Manager) localFile() string { return filepath.Join(m.cfg.RunDir, "local.json") }

// Local reads the record; a missing one is empty.
func (m *Manager) Local() (Local, error) {
	m.localMu.Lock()
	defer m.localMu.Unlock()
	return m.readLocal()
}

func (m *Manager) readLocal() (Local, error) {
	l := Local{Lineage: map[fsm.Timeline]fsm.Epoch{}}
	b, err := os.ReadFile(m.localFile())
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &l)
	}
	if err != nil {
		return Local{}, fmt.Errorf("read the local record %s: %w; without it this node's data cannot be trusted: restore the file, or remove it together with the data directory", m.localFile(), err)
	}
	if l.Lineage == nil {
		l.Lineage = map[fsm.Timeline]fsm.Epoch{}
	}
	return l, nil
}

// change rewrites the record durably.
func (m *Manager) change(f func(*Local) error) error {
	m.localMu.Lock()
	defer m.localMu.Unlock()
	l, err := m.readLocal()
	if err != nil {
		return err
	}
	if err := f(&l); err != nil {
		return err
	}
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the local record: %w", err)
	}
	if err := m.makeDir(m.cfg.RunDir, 0o700); err != nil {
		return err
	}
	return m.replace(m.localFile(), append(b, '\n'), 0o600)
}

// Promise durably rules out every epoch below e. It is idempotent; a lower epoch than the promised one is ErrPromised.
func (m *Manager) Promise(e fsm.Epoch) error {
	return m.change(func(l *Local) error {
		if e.Less(l.Promise) {
			return fmt.Errorf("promise epoch %s: %w: %s", e, ErrPromised, l.Promise)
		}
		l.Promise = e
		return nil
	})
}

// SetLineage records which epoch made timelines that are held here, before the first byte of them is written or followed.
func (m *Manager) SetLineage(made map[fsm.Timeline]fsm.Epoch) error {
	l, err := m.Local()
	if err != nil {
		return err
	}
	known := maps.Clone(l.Lineage)
	maps.Copy(known, made)
	if maps.Equal(known, l.Lineage) {
		return nil
	}
	return m.change(func(l *Local) error {
		maps.Copy(l.Lineage, made)
		return nil
	})
}

// SetWord records for how long this node has given its word not to become primary; 0: nothing is out any more.
func (m *Manager) SetWord(length time.Duration) error {
	return m.change(func(l *Local) error {
		l.Word = length
		return nil
	})
}

// begin marks the data directory as under construction.
func (m *Manager) begin(kind string) error {
	return m.change(func(l *Local) error {
		l.Unfinished = &Unfinished{Kind: kind, Since: time.Now().UTC()}
		return nil
	})
}

// finish records what the data directory holds now and removes the mark.
func (m *Manager) finish(systemID string, lineage map[fsm.Timeline]fsm.Epoch) error {
	return m.change(func(l *Local) error {
		l.Lineage = lineage
		l.SystemID, l.Unfinished, l.ReadySlots = systemID, nil, nil
		return nil
	})
}
