package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// maxHeld bounds how many files of the log are held open; 16 GB at the usual size.
const maxHeld = 1024

// heldLog is the log before a fork, held open, since pg_rewind removes what its source has recycled: older minor versions all of it, newer
// ones what is older than the record of the last common checkpoint. Replay starts earlier, where that checkpoint began. A file that was
// removed keeps its room on the disk until it is closed: putting it back needs no more than there was.
type heldLog []*os.File

func (h heldLog) close() {
	for _, f := range h {
		_ = f.Close()
	}
}

// holdLog opens the files of the log that end at fork or before, the newest first.
func (m *Manager) holdLog(ctx context.Context, fork fsm.LSN) (held heldLog, err error) {
	c, err := m.ControlData(ctx)
	if err != nil {
		return nil, err
	}
	wal := filepath.Join(m.cfg.DataDir, "pg_wal")
	entries, err := os.ReadDir(wal)
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Backward(entries) {
		path := filepath.Join(wal, e.Name())
		_, start, segment := pgconf.ParseSegmentName(e.Name(), c.SegmentSize)
		if !segment || uint64(start)+c.SegmentSize > uint64(fork) || !segmentUsed(path, start) || len(held) == maxHeld {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			held.close()
			return nil, fmt.Errorf("hold the log: %w", err)
		}
		held = append(held, f)
	}
	return held, nil
}

// putBack writes what is missing of the held log from the point on where the rewound server starts its replay.
func (m *Manager) putBack(ctx context.Context, held heldLog) error {
	from, err := backupStart(m.cfg.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was rewound
	}
	if err != nil {
		return err
	}
	c, err := m.ControlData(ctx)
	if err != nil {
		return err
	}
	back := 0
	for _, f := range held {
		_, start, _ := pgconf.ParseSegmentName(filepath.Base(f.Name()), c.SegmentSize)
		if uint64(start)+c.SegmentSize <= uint64(from) {
			continue
		}
		err := m.write(f.Name(), f)
		switch {
		case err == nil:
			back++
		case !errors.Is(err, fs.ErrExist):
			return fmt.Errorf("put the log back: %w", err)
		}
	}
	if back == 0 {
		return nil
	}
	m.log.Info("log put back that the source of the rewind has no more", "files", back, "from", from)
	return syncDir(filepath.Join(m.cfg.DataDir, "pg_wal"))
}

// write makes a new file of PostgreSQL's account.
func (m *Manager) write(path string, from io.Reader) error {
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err == nil {
		err = to.Sync()
	}
	return errors.Join(err, to.Close(), m.os.own(path))
}

// backupStart reads from backup_label where replay starts.
func backupStart(dir string) (fsm.LSN, error) {
	v, err := backupLabel(dir, "START WAL LOCATION")
	if err != nil {
		return 0, err
	}
	at, _, _ := strings.Cut(v, " ")
	lsn, err := fsm.ParseLSN(at)
	if err != nil {
		return 0, fmt.Errorf("read backup_label: %w", err)
	}
	return lsn, nil
}
