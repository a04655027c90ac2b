package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/hashicorp/raft"

	"matriarch/fsm"
)

// Restore makes a folder that holds no Raft state hold s, with this node as the only voter. As with Recover the caller raises the
// incarnation of the node's identity, and all other nodes join anew.
func Restore(dir string, id fsm.NodeID, s *fsm.State) (err error) {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("restore into %s: it is not empty: move it away first", dir)
	}
	st, err := openStore(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, keepSnapshot, newLibLog(slog.New(slog.DiscardHandler), "raft"))
	if err != nil {
		return storeError(dir, err)
	}
	if err := st.SetUint64(keyCurrentTerm, 1); err != nil {
		return storeError(dir, err)
	}
	_, unused := raft.NewInmemTransport(raft.ServerAddress(id))
	sink, err := snaps.Create(raft.SnapshotVersionMax, max(s.Index, 1), 1, soleVoter(id), 1, unused)
	if err != nil {
		return storeError(dir, err)
	}
	if err := fsm.WriteSnapshot(sink, s); err != nil {
		return errors.Join(storeError(dir, err), sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return storeError(dir, err)
	}
	return nil
}
