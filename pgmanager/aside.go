package pgmanager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"matriarch/fsm"
)

// ErrNoRoom means that a clone, or the log set aside before a rewind, would not fit on the disk.
var ErrNoRoom = errors.New("not enough room")

// ErrAsideFull means that as many data directories as allowed are kept aside, and each may hold what nobody else has.
var ErrAsideFull = errors.New("too many data directories are kept aside")

// Aside is a data directory that a clone replaced.
type Aside struct {
	Path string
	Note Note
}

// Note tells, inside a data directory set aside, what it is.
type Note struct {
	At      time.Time                  `json:"at"`
	For     string                     `json:"replaced_by_clone_of"` // host:port
	Prefix  bool                       `json:"prefix"`               // every byte of it came from the primary of that time
	Lineage map[fsm.Timeline]fsm.Epoch `json:"lineage,omitempty"`    // which epoch made the timelines in it
}

// noteFile lies in the directory that is set aside. PostgreSQL does not mind it.
const noteFile = "matriarch-set-aside.json"

// backupSlack is what a base backup takes beside the tables: the log meanwhile, and what is written until it ends.
const backupSlack = 64 << 20

// SetAside lists the data directories kept aside, the oldest first. One without a note is never a prefix.
func (m *Manager) SetAside() ([]Aside, error) {
	dir, name := filepath.Split(m.cfg.DataDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for what is set aside: %w", err)
	}
	var out []Aside
	for _, e := range entries { // by name, which ends in the time
		if !e.IsDir() || !strings.HasPrefix(e.Name(), name+".set-aside-") {
			continue
		}
		a := Aside{Path: filepath.Join(dir, e.Name())}
		if b, err := os.ReadFile(filepath.Join(a.Path, noteFile)); err == nil && json.Unmarshal(b, &a.Note) != nil {
			a.Note = Note{}
		}
		out = append(out, a)
	}
	return out, nil
}

// CloneFits reports why a clone of so many bytes could not be made now: ErrNoRoom or ErrAsideFull. It changes nothing.
func (m *Manager) CloneFits(size int64) error {
	_, err := m.fits(size)
	return err
}

// fits also returns the directories that have to be deleted first.
func (m *Manager) fits(size int64) (spare []string, err error) {
	all, err := m.SetAside()
	if err != nil {
		return nil, err
	}
	empty, err := isEmpty(m.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if over := len(all) + 1 - m.cfg.SetAsideLimit; m.cfg.SetAsideLimit > 0 && over > 0 && !empty {
		for _, a := range all {
			if a.Note.Prefix && len(spare) < over {
				spare = append(spare, a.Path)
			}
		}
		if len(spare) < over {
			return nil, fmt.Errorf("%w: %d beside %s, %d allowed, and they may hold writes that the group does not have: look at them, then delete or move them, or raise postgresql.set_aside_limit",
				ErrAsideFull, len(all), m.cfg.DataDir, m.cfg.SetAsideLimit)
		}
	}
	free, err := freeBytes(filepath.Dir(m.cfg.DataDir))
	if err != nil {
		return nil, err
	}
	if need := size + backupSlack; free < need && len(spare) == 0 {
		return nil, fmt.Errorf("%w beside %s: a clone needs %d MB, %d MB are free, and the old directory stays until it is complete: make room",
			ErrNoRoom, m.cfg.DataDir, need>>20, free>>20)
	}
	return spare, nil
}

// makeRoom deletes what fits found to be of no use any more, and looks again.
func (m *Manager) makeRoom(size int64) error {
	spare, err := m.fits(size)
	if err != nil || len(spare) == 0 {
		return err
	}
	for _, path := range spare {
		m.log.Info("deleting a data directory set aside: all of it is the group's", "path", path)
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("delete what was set aside: %w", err)
		}
	}
	return m.CloneFits(size)
}

func freeBytes(dir string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if errors.Is(err, fs.ErrNotExist) && dir != "/" {
			dir = filepath.Dir(dir)
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("look at the room in %s: %w", dir, err)
		}
		return int64(st.Bavail) * st.Bsize, nil
	}
}

// beginClone marks the data directory, and keeps what an interrupted clone knew of it: it is the same one still.
func (m *Manager) beginClone(up Upstream, prefix bool) (Note, error) {
	now := time.Now().UTC()
	n := Note{At: now, For: up.address(), Prefix: prefix}
	err := m.change(func(l *Local) error {
		if u := l.Unfinished; u != nil {
			n.Prefix = u.Kind == "clone" && u.Prefix
		}
		n.Lineage = l.Lineage
		l.Unfinished = &Unfinished{Kind: "clone", Since: now, Prefix: n.Prefix}
		return nil
	})
	return n, err
}

// writeNote leaves the note in the data directory that is about to be set aside.
func (m *Manager) writeNote(n Note) error {
	if empty, err := isEmpty(m.cfg.DataDir); err != nil || empty {
		return err
	}
	b, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the note: %w", err)
	}
	return m.replace(filepath.Join(m.cfg.DataDir, noteFile), append(b, '\n'), 0o600)
}

// CloneRoom asks the source how much a clone of it takes, and reports why it could not be made now. It changes nothing.
func (m *Manager) CloneRoom(ctx context.Context, up Upstream) error {
	src, err := m.askSource(ctx, up)
	if err == nil {
		err = m.CloneFits(src.size)
	}
	if err != nil {
		return fmt.Errorf("clone from %s: %w", up.address(), err)
	}
	return nil
}
