package fsm

import (
	"encoding/json"
	"fmt"
	"io"
)

// snapshotFormat is the version written.
const snapshotFormat = 1

type snapshotFile struct {
	Format    int    `json:"format"`
	MinReader int    `json:"min_reader"` // the oldest binary's Protocol that may read it
	State     *State `json:"state"`
}

// WriteSnapshot writes the whole state.
func WriteSnapshot(w io.Writer, s *State) error {
	if err := json.NewEncoder(w).Encode(snapshotFile{snapshotFormat, max(s.Cluster.Gate, 1), s}); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// ReadSnapshot reads what WriteSnapshot wrote. A snapshot from a newer version is refused, never read in part.
func ReadSnapshot(r io.Reader) (*State, error) {
	f := snapshotFile{State: NewState()}
	if err := json.NewDecoder(r).Decode(&f); err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	if f.MinReader > Protocol || f.State == nil {
		return nil, fmt.Errorf("read snapshot: it needs a matriarch that knows command version %d, this one knows %d: install a newer one", f.MinReader, Protocol)
	}
	return f.State, nil
}
