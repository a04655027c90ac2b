package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"matriarch/fsm"
)

// Inspect reads the state that a stopped node's folder holds, entries that may never have been committed included, and how far
// its log goes: of several survivors the one with the greatest (term, index) knows most. It changes nothing.
func Inspect(dir string) (s *fsm.State, index, term uint64, err error) {
	b, snaps, err := openStopped(dir, true)
	if err != nil {
		return nil, 0, 0, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	m, last, err := replay(b, snaps)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("inspect %s: %w", dir, err)
	}
	return m.State(), last.Index, last.Term, nil
}

// Recover makes a stopped node the only voter of its cluster. Everything in its log counts as committed from then on. The caller
// raises the incarnation of the node's identity; the state gets it from the node's first leadership. All other nodes join anew.
func Recover(dir string, id fsm.NodeID) (s *fsm.State, err error) {
	b, snaps, err := openStopped(dir, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	var broken error
	m := fsm.NewMachine(func(_, _ *fsm.State) {}, func(err error) { broken = err })
	c := raft.DefaultConfig()
	c.LocalID, c.Logger = raft.ServerID(id), newLibLog(slog.New(slog.DiscardHandler), "raft")
	_, unused := raft.NewInmemTransport(raft.ServerAddress(id))
	if err = raft.RecoverCluster(c, guard{m}, b, b, snaps, unused, soleVoter(id)); err == nil {
		err = broken
	}
	if err != nil {
		return nil, fmt.Errorf("recover %s: %w", dir, err)
	}
	return m.State(), nil
}

func openStopped(dir string, readOnly bool) (*store, raft.SnapshotStore, error) {
	if _, err := os.Stat(filepath.Join(dir, storeFile)); err != nil {
		return nil, nil, fmt.Errorf("%w: there is no Raft state in %s: name the state folder of a node that has been in the cluster", err, dir)
	}
	b, err := openBolt(dir, readOnly)
	if err != nil {
		return nil, nil, err
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, keepSnapshot, newLibLog(slog.New(slog.DiscardHandler), "raft"))
	if err != nil {
		return nil, nil, errors.Join(storeError(dir, err), b.Close())
	}
	return newStore(b), snaps, nil
}

// replay applies the newest snapshot and the whole log behind it to a machine of its own. An entry that this version does not
// know ends it early, without an error.
func replay(logs raft.LogStore, snaps raft.SnapshotStore) (*fsm.Machine, raft.Log, error) {
	g := guard{fsm.NewMachine(func(_, _ *fsm.State) {}, func(error) {})}
	var last raft.Log
	list, err := snaps.List()
	if err != nil {
		return nil, last, fmt.Errorf("list snapshots: %w", err)
	}
	for _, meta := range list {
		_, r, err := snaps.Open(meta.ID)
		if err != nil {
			continue // an older one may be whole
		}
		if g.Restore(r) == nil {
			last = raft.Log{Index: meta.Index, Term: meta.Term}
			break
		}
	}
	end, err := logs.LastIndex()
	if err != nil {
		return nil, last, fmt.Errorf("read the end of the log: %w", err)
	}
	first, err := logs.FirstIndex()
	if err != nil {
		return nil, last, fmt.Errorf("read the beginning of the log: %w", err)
	}
	for i := max(first, last.Index+1); i <= end && i > 0; i++ {
		var l raft.Log
		if err := logs.GetLog(i, &l); err != nil {
			return nil, last, fmt.Errorf("read entry %d: %w", i, err)
		}
		if l.Type == raft.LogCommand {
			g.Apply(&l)
		}
		last = l
	}
	return g.Machine, last, nil
}
