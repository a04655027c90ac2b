package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// Rewind takes back what this stopped server wrote behind from, the point where its history left that of up, and makes it
// a standby of up. The log from there on is copied to RunDir/set-aside first. up has to be a primary. Files that up changes
// meanwhile are only right again with the log up to the end of the copy, which may be missing here: catchUp has to start the
// server as a standby of up and return once it answers. Nil leaves that out, for an up that nobody writes to. After a
// failure the mark stays and only Clone helps.
func (m *Manager) Rewind(ctx context.Context, up Upstream, from fsm.LSN, catchUp func(context.Context) error) error {
	if err := m.rewind(ctx, up, from, catchUp); err != nil {
		return fmt.Errorf("rewind to %s: %w", up.address(), err)
	}
	return nil
}

func (m *Manager) rewind(ctx context.Context, up Upstream, from fsm.LSN, catchUp func(context.Context) error) error {
	if err := m.checkDataDir(); err != nil {
		return err
	}
	if pid, ok := m.RunningPostmaster(); ok {
		return fmt.Errorf("%w (pid %d): stop it first", ErrRunning, pid)
	}
	l, err := m.Local()
	if err != nil {
		return err
	}
	if l.Unfinished != nil {
		return fmt.Errorf("%w (%s since %s): clone instead", ErrUnfinished, l.Unfinished.Kind, l.Unfinished.Since.Format(time.RFC3339))
	}
	src, err := m.askSource(ctx, up)
	if err != nil {
		return err
	}
	if src.inRecovery {
		return errors.New("the source is a standby: rewind to a primary")
	}
	if err := m.saveLog(ctx, from); err != nil {
		return err
	}
	if err := m.begin("rewind"); err != nil {
		return err
	}
	if err := m.recoverAlone(ctx); err != nil {
		return err
	}
	if err := m.pgRewind(ctx, up); err != nil {
		return err
	}
	if err := m.makeStandby(m.cfg.DataDir); err != nil {
		return err
	}
	if catchUp != nil {
		m.catchingUp.Store(true)
		defer m.catchingUp.Store(false)
		if err := catchUp(ctx); err != nil {
			return fmt.Errorf("catch up with the source: %w", err)
		}
	}
	if err := m.finish(src.systemID, src.timeline, up.Epoch, src.history.Entries); err != nil {
		return err
	}
	m.log.Info("data directory rewound", "to", up.address(), "fork", from, "timeline", src.timeline)
	return nil
}

func (m *Manager) pgRewind(ctx context.Context, up Upstream) error {
	pass, done, err := m.toolPass(up)
	if err != nil {
		return err
	}
	defer done()
	ci := pgconf.Conninfo{
		"host": up.Host, "port": strconv.Itoa(up.Port), "user": m.cfg.Superuser, "dbname": maintenanceDB,
		"application_name": "matriarch rewind",
	}
	_, err = m.run(ctx, tool{
		name: "pg_rewind",
		args: []string{"--target-pgdata=" + m.cfg.DataDir, "--source-server=" + ci.String(), "--no-ensure-shutdown"},
		env:  append(m.linkEnv(up, m.cfg.tls().Superuser), pass...),
	})
	return err
}

// recoverAlone ends crash recovery in a single-user server, as pg_rewind needs a clean end. It does what pg_rewind would do
// itself, which fails on a data directory that has standby.signal.
func (m *Manager) recoverAlone(ctx context.Context) error {
	c, err := m.ControlData(ctx)
	if err != nil || c.Clean() {
		return err
	}
	if err := os.Remove(filepath.Join(m.cfg.DataDir, "standby.signal")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("recover before the rewind: %w", err)
	}
	args := append([]string{"--single", "-D", m.cfg.DataDir}, m.configFileArgs()...)
	args = append(args, "-c", "archive_mode=off", "-c", "synchronous_standby_names=", "template1")
	if _, err := m.run(ctx, tool{name: "postgres", args: args}); err != nil {
		return fmt.Errorf("recover before the rewind: %w", err)
	}
	return nil
}

// saveLog copies the log from the fork on, and every history, aside.
func (m *Manager) saveLog(ctx context.Context, from fsm.LSN) error {
	c, err := m.ControlData(ctx)
	if err != nil {
		return err
	}
	base := filepath.Join(m.cfg.RunDir, "set-aside")
	dir := filepath.Join(base, stamp(time.Now()))
	if err := errors.Join(m.makeRunDirs(), m.makeDir(base, 0o700), m.makeDir(dir, 0o700)); err != nil {
		return err
	}
	wal := filepath.Join(m.cfg.DataDir, "pg_wal")
	entries, err := os.ReadDir(wal)
	if err != nil {
		return fmt.Errorf("set the log aside: %w", err)
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		path := filepath.Join(wal, e.Name())
		_, history := pgconf.ParseHistoryName(e.Name())
		_, start, segment := pgconf.ParseSegmentName(e.Name(), c.SegmentSize)
		if !history && (!segment || uint64(start)+c.SegmentSize <= uint64(from) || !segmentUsed(path, start)) {
			continue
		}
		if err := m.copyFile(path, filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("set the log aside: %w", err)
		}
	}
	m.log.Info("log set aside before the rewind", "path", dir, "from", from)
	return errors.Join(syncDir(dir), syncDir(base))
}

func segmentUsed(path string, start fsm.LSN) bool {
	f, err := os.Open(path)
	if err != nil {
		return true // copying says what is wrong
	}
	defer f.Close()
	head := make([]byte, 16)
	_, err = io.ReadFull(f, head)
	return err == nil && pgconf.SegmentUsed(head, start)
}

func (m *Manager) copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err == nil {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close(), m.os.own(to))
}

// ControlData runs pg_controldata on the data directory.
func (m *Manager) ControlData(ctx context.Context) (pgconf.ControlData, error) {
	out, err := m.run(ctx, tool{name: "pg_controldata", args: []string{"-D", m.cfg.DataDir}})
	if err != nil {
		return pgconf.ControlData{}, err
	}
	return pgconf.ParseControlData(out)
}
