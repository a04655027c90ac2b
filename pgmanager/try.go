package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// Trial is how one new session went.
type Trial struct {
	Failed    bool
	Connected bool   // the session was there
	Code      string // SQLSTATE of what PostgreSQL said, if it said something
	Errno     string // name of the system's error, if that was it: ENOSPC, EIO, ECONNREFUSED
	Text      string
}

// Disk is one file system.
type Disk struct {
	Path     string
	Free     int64  // bytes for PostgreSQL's user
	Inodes   int64  // files that may still be made; -1: no limit
	ReadOnly bool   // the kernel writes nothing to it
	Errno    string // of the look at it
}

// Try opens a new session on the Unix socket, as a stranger would, and on a primary writes a record through the log, durable here only.
// It takes as long as ctx lets it. connected is called once the session is there.
func (m *Manager) Try(ctx context.Context, primary bool, connected func()) Trial {
	cfg, err := m.connConfig(Upstream{Host: m.cfg.SocketDir, Port: m.cfg.Port})
	if err != nil {
		return Trial{Failed: true, Text: err.Error()}
	}
	cfg.ConnectTimeout = 0
	cfg.RuntimeParams["application_name"] = "matriarch probe"
	c, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return trialOf(err, false)
	}
	connected()
	statement := "SELECT 1"
	if primary {
		statement = "SELECT pg_logical_emit_message(true, 'matriarch', 'probe')"
	}
	_, err = c.Exec(ctx, statement).ReadAll()
	if err == nil {
		err = c.Close(ctx)
	}
	return trialOf(err, true)
}

// trialOf keeps of an error what a diagnosis needs.
func trialOf(err error, connected bool) Trial {
	if err == nil {
		return Trial{Connected: connected}
	}
	t := Trial{Failed: true, Connected: connected, Text: err.Error(), Errno: errnoName(err)}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		t.Code, t.Text = pg.Code, fmt.Sprintf("%s (%s)", pg.Message, pg.Code)
	}
	return t
}

func errnoName(err error) string {
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return unix.ErrnoName(no)
	}
	return ""
}

// Disks looks at the file systems of the data directory and of its log; one that is not there is left out. It may hang with its disk.
func (m *Manager) Disks() []Disk {
	var out []Disk
	var before unix.Fsid
	for _, path := range []string{m.cfg.DataDir, filepath.Join(m.cfg.DataDir, "pg_wal")} {
		var fs unix.Statfs_t
		err := unix.Statfs(path, &fs)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			out = append(out, Disk{Path: path, Inodes: -1, Errno: errnoName(err)})
			continue
		case len(out) > 0 && fs.Fsid == before:
			continue
		}
		before = fs.Fsid
		d := Disk{Path: path, Free: int64(fs.Bavail) * fs.Frsize, Inodes: -1, ReadOnly: fs.Flags&unix.ST_RDONLY != 0}
		if fs.Files > 0 {
			d.Inodes = int64(fs.Ffree)
		}
		// It writes nothing new, and yet finds a file system that has stopped to write: after an error some say so in no other way.
		if err := syncDir(path); err != nil && !errors.Is(err, unix.EINVAL) { // some have no such thing for directories
			d.Errno = errnoName(err)
		}
		out = append(out, d)
	}
	return out
}
