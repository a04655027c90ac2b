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
	"strings"
	"time"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// Rewind takes back what this stopped server wrote behind from, the point where its history left that of up, and makes it
// a standby of up. The log from there on is copied to RunDir/set-aside first; ErrNoRoom: it does not fit, nothing has changed. up has to be a primary. Files that up changes
// meanwhile are only right again with the log up to the end of the copy, which may be missing here: catchUp has to start the
// server as a standby of up and return once it answers. Nil leaves that out, for an up that nobody writes to. After a
// failure the mark stays and only Clone helps.
func (m *Manager) Rewind(ctx context.Context, up Upstream, from fsm.LSN, catchUp func(context.Context) error) error {
	err := m.rewind(ctx, up, from, catchUp)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("rewind to %s: %w", up.address(), err)
	return errors.Join(err, m.change(func(l *Local) error {
		if l.Unfinished != nil && l.Unfinished.Kind == "rewind" {
			l.Unfinished.Why = err.Error()
		}
		return nil
	}))
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
	if err := m.pgRewind(ctx, up, from); err != nil {
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
	if err := m.finish(src.systemID, up.Lineage); err != nil {
		return err
	}
	m.log.Info("data directory rewound", "to", up.address(), "fork", from, "timeline", src.timeline)
	return nil
}

func (m *Manager) pgRewind(ctx context.Context, up Upstream, fork fsm.LSN) error {
	held, err := m.holdLog(ctx, fork)
	if err != nil {
		return err
	}
	defer held.close()
	pass, done, err := m.toolPass(up)
	if err != nil {
		return err
	}
	defer done()
	ci := pgconf.Conninfo{
		"host": up.Host, "port": strconv.Itoa(up.Port), "user": m.cfg.Superuser, "dbname": MaintenanceDB,
		"application_name": "matriarch rewind",
	}
	args := []string{"--target-pgdata=" + m.cfg.DataDir, "--source-server=" + ci.String(), "--no-ensure-shutdown"}
	restore, err := m.restoreArgs(ctx)
	if err != nil {
		return err
	}
	if _, err := m.run(ctx, tool{name: "pg_rewind", args: append(args, restore...), env: append(m.linkEnv(up, m.cfg.tls().Superuser), pass...)}); err != nil {
		return err
	}
	return m.putBack(ctx, held)
}

// restoreArgs has pg_rewind fetch log that is here no more by the restore_command, if there is one.
func (m *Manager) restoreArgs(ctx context.Context) ([]string, error) {
	args := append([]string{"-D", m.cfg.DataDir}, m.configFileArgs()...)
	out, err := m.run(ctx, tool{name: "postgres", args: append(args, "-C", "restore_command")})
	if err != nil {
		return nil, fmt.Errorf("read restore_command: %w", err)
	}
	if strings.TrimSpace(string(out)) == "" {
		return nil, nil
	}
	restore := []string{"--restore-target-wal"}
	if m.cfg.ConfigFile != filepath.Join(m.cfg.DataDir, "postgresql.conf") {
		restore = append(restore, "--config-file="+m.cfg.ConfigFile)
	}
	return restore, nil
}

// recoverAlone ends crash recovery in a single-user server, as pg_rewind needs a clean end. It does what pg_rewind would do
// itself, which fails on a data directory that has standby.signal. Its checkpoint must not remove the log that pg_rewind reads.
func (m *Manager) recoverAlone(ctx context.Context) error {
	c, err := m.ControlData(ctx)
	if err != nil || c.Clean() {
		return err
	}
	if err := os.Remove(filepath.Join(m.cfg.DataDir, "standby.signal")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("recover before the rewind: %w", err)
	}
	args := append([]string{"--single", "-D", m.cfg.DataDir}, m.configFileArgs()...)
	args = append(args, "-c", "archive_mode=off", "-c", "synchronous_standby_names=", "-c", "wal_keep_size=2147483647", "-c", "max_slot_wal_keep_size=-1", "template1")
	if _, err := m.run(ctx, tool{name: "postgres", args: args}); err != nil {
		return fmt.Errorf("recover before the rewind: %w", err)
	}
	return nil
}

// controlSlack stays free beside the log set aside: on the same disk are promises, and often Raft's log.
const controlSlack = 64 << 20

// saveLog copies the log from the fork on, and every history, aside. ErrNoRoom: it does not fit; nothing was copied.
func (m *Manager) saveLog(ctx context.Context, from fsm.LSN) error {
	names, size, err := m.logBehind(ctx, from)
	if err != nil {
		return fmt.Errorf("set the log aside: %w", err)
	}
	base := filepath.Join(m.cfg.RunDir, "set-aside")
	free, err := freeBytes(base)
	if err != nil {
		return err
	}
	if free < size+controlSlack {
		return fmt.Errorf("%w in %s: %d MB of log have to be set aside before the rewind, %d MB are free, and %d MB have to stay free: look at what is there, move or delete it, or make room",
			ErrNoRoom, base, size>>20, free>>20, controlSlack>>20)
	}
	dir := filepath.Join(base, stamp(time.Now()))
	if err := errors.Join(m.makeRunDirs(), m.makeDir(base, 0o700), m.makeDir(dir, 0o700)); err != nil {
		return err
	}
	if err := m.copyLog(ctx, names, dir); err != nil {
		// Half a copy is of no use to anybody: the log itself is where it was.
		return errors.Join(fmt.Errorf("set the log aside: %w", err), os.RemoveAll(dir))
	}
	m.log.Info("log set aside before the rewind", "path", dir, "from", from)
	return errors.Join(syncDir(dir), syncDir(base))
}

func (m *Manager) copyLog(ctx context.Context, names []string, to string) error {
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := m.copyFile(filepath.Join(m.cfg.DataDir, "pg_wal", name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	return nil
}

// logBehind names the files of the log from a position on, and every history, and says how many bytes they have.
func (m *Manager) logBehind(ctx context.Context, from fsm.LSN) (names []string, size int64, err error) {
	c, err := m.ControlData(ctx)
	if err != nil {
		return nil, 0, err
	}
	wal := filepath.Join(m.cfg.DataDir, "pg_wal")
	entries, err := os.ReadDir(wal)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		_, history := pgconf.ParseHistoryName(e.Name())
		_, start, segment := pgconf.ParseSegmentName(e.Name(), c.SegmentSize)
		if !history && (!segment || uint64(start)+c.SegmentSize <= uint64(from) || !segmentUsed(filepath.Join(wal, e.Name()), start)) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, 0, err
		}
		names, size = append(names, e.Name()), size+info.Size()
	}
	return names, size, nil
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
	return m.write(to, src)
}

// ControlData runs pg_controldata on the data directory.
func (m *Manager) ControlData(ctx context.Context) (pgconf.ControlData, error) {
	out, err := m.run(ctx, tool{name: "pg_controldata", args: []string{"-D", m.cfg.DataDir}})
	if err != nil {
		return pgconf.ControlData{}, err
	}
	return pgconf.ParseControlData(out)
}
