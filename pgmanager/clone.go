package pgmanager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// ErrRunning means that the server has to be stopped first.
var ErrRunning = errors.New("PostgreSQL is running")

// ErrOtherSystem means that the other server belongs to another cluster.
var ErrOtherSystem = errors.New("another system identifier")

// Clone replaces the data directory by a base backup of up. progress (may be nil) gets bytes. A directory in place is
// renamed to <DataDir>.set-aside-<UTC time> once the backup is complete. Cancelling leaves the mark that Local shows.
// Tablespaces are copied to the same paths, which have to be free.
//
// prefix says that every byte of the old directory came from the present primary. Only such directories are ever deleted, the oldest first, when
// more than Config.SetAsideLimit are kept; while all of them may hold what nobody else has, ErrAsideFull is returned. ErrNoRoom means that the
// backup would not fit. Both come before anything is touched.
func (m *Manager) Clone(ctx context.Context, up Upstream, prefix bool, progress func(done, total int64)) error {
	if err := m.clone(ctx, up, prefix, progress); err != nil {
		return fmt.Errorf("clone from %s: %w", up.address(), err)
	}
	return nil
}

func (m *Manager) clone(ctx context.Context, up Upstream, prefix bool, progress func(done, total int64)) error {
	if pid, ok := m.RunningPostmaster(); ok {
		return fmt.Errorf("%w (pid %d): stop it first", ErrRunning, pid)
	}
	src, err := m.askSource(ctx, up)
	if err != nil {
		return err
	}
	tmp := m.cfg.DataDir + ".clone"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("remove the rest of an interrupted clone: %w", err)
	}
	if err := m.makeRoom(src.size); err != nil {
		return err
	}
	note, err := m.beginClone(up, prefix)
	if err != nil {
		return err
	}
	if err := m.freshSibling(tmp); err != nil {
		return err
	}
	if err := m.baseBackup(ctx, up, src.slotFree, tmp, progress); err != nil {
		return err
	}
	if err := m.makeStandby(tmp); err != nil {
		return err
	}
	tl, err := backupTimeline(tmp)
	if err != nil {
		return err
	}
	if err := m.writeNote(note); err != nil {
		return err
	}
	if err := m.moveIn(tmp); err != nil {
		return err
	}
	if err := m.finish(src.systemID, up.Lineage); err != nil {
		return err
	}
	m.log.Info("data directory cloned", "from", up.address(), "timeline", tl)
	return nil
}

func (m *Manager) baseBackup(ctx context.Context, up Upstream, useSlot bool, dir string, progress func(done, total int64)) error {
	pass, done, err := m.toolPass(up)
	if err != nil {
		return err
	}
	defer done()
	args := []string{
		"-D", dir, "-X", "stream", "-c", "fast", "-w", "-P",
		"-h", up.Host, "-p", strconv.Itoa(up.Port), "-U", m.cfg.ReplicationUser,
	}
	if useSlot {
		args = append(args, "-S", up.Slot)
	}
	report := func(line string) {
		if d, t, ok := parseProgress(line); ok && progress != nil {
			progress(d, t)
		}
	}
	_, err = m.run(ctx, tool{name: "pg_basebackup", args: args, env: append(m.linkEnv(up, m.cfg.tls().Replication), pass...), onLine: report})
	return err
}

// linkEnv makes a tool prove itself to the source, and check it, as the walreceiver does.
func (m *Manager) linkEnv(up Upstream, as pgconf.KeyPair) []string {
	env := []string{"PGCONNECT_TIMEOUT=5"}
	if !m.cfg.certificates(up.Security) {
		return append(env, "PGSSLMODE=prefer")
	}
	for key, v := range m.cfg.tls().Link(as) {
		env = append(env, "PG"+strings.ToUpper(key)+"="+v)
	}
	return env
}

var progressPattern = regexp.MustCompile(`^\s*(\d+)/(\d+) kB \(`)

// parseProgress reads a progress line of pg_basebackup or pg_rewind; the numbers are bytes.
func parseProgress(line string) (done, total int64, ok bool) {
	f := progressPattern.FindStringSubmatch(line)
	if f == nil {
		return 0, 0, false
	}
	done, err1 := strconv.ParseInt(f[1], 10, 50)
	total, err2 := strconv.ParseInt(f[2], 10, 50)
	return done << 10, total << 10, err1 == nil && err2 == nil
}

// backupTimeline reads from backup_label which timeline a base backup starts on.
func backupTimeline(dir string) (fsm.Timeline, error) {
	v, err := backupLabel(dir, "START TIMELINE")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("read backup_label: %w", err)
	}
	return fsm.Timeline(n), nil
}

// backupLabel reads one value of backup_label.
func backupLabel(dir, key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "backup_label"))
	if err != nil {
		return "", fmt.Errorf("read backup_label: %w", err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, key+": "); ok {
			return strings.TrimSpace(v), nil
		}
	}
	return "", fmt.Errorf("read backup_label: it does not name %s", key)
}

// source is what a clone or rewind has to know about the other server.
type source struct {
	systemID   string
	inRecovery bool
	timeline   fsm.Timeline // of a primary; 0 in recovery
	checkpoint fsm.Timeline // of the last checkpoint
	slotFree   bool
	size       int64 // bytes of a base backup without its log
}

// askSource looks at the other server as superuser and refuses one of another cluster. A just promoted primary gets a
// checkpoint: pg_rewind takes the timeline from the control file and else finds nothing to do.
func (m *Manager) askSource(ctx context.Context, up Upstream) (source, error) {
	var s source
	c, err := m.connect(ctx, up)
	if err != nil {
		return s, err
	}
	defer closeConn(c)
	var segment string
	err = c.QueryRow(ctx, `SELECT s.system_identifier::text, pg_is_in_recovery(), c.timeline_id,
		CASE WHEN pg_is_in_recovery() THEN '' ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END,
		EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND slot_type = 'physical' AND NOT active
			AND wal_status IS DISTINCT FROM 'lost'),
		pg_tablespace_size('pg_default') + pg_tablespace_size('pg_global')
		FROM pg_control_system() s, pg_control_checkpoint() c`, up.Slot).
		Scan(&s.systemID, &s.inRecovery, &s.checkpoint, &segment, &s.slotFree, &s.size)
	if err != nil {
		return s, fmt.Errorf("ask the source: %w", err)
	}
	if want := cmp.Or(up.SystemID, m.cfg.SystemID); want != "" && want != s.systemID {
		return s, fmt.Errorf("%w: %s there, %s expected here; check the address", ErrOtherSystem, s.systemID, want)
	}
	if segment != "" {
		n, err := strconv.ParseUint(segment, 16, 32)
		if err != nil {
			return s, fmt.Errorf("ask the source for its timeline: %w", err)
		}
		s.timeline = fsm.Timeline(n)
		if s.timeline != s.checkpoint {
			if _, err := c.Exec(ctx, "CHECKPOINT"); err != nil {
				return s, fmt.Errorf("checkpoint the source: %w", err)
			}
		}
	}
	return s, nil
}
