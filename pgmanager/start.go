package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/pgmanager/pgconf"
)

// Start is what the sentinel needs to start the postmaster.
type Start struct {
	Argv    []string
	Env     []string
	Dir     string // the data directory
	UID     uint32
	GID     uint32
	Groups  []uint32
	LogFile string
}

// StartCommand prepares the data directory for a start as standby and returns the command. It refuses a directory of
// another owner or version and, with ErrUnfinished, one under construction. Apply has to have written the managed files;
// where it has not, a closed configuration without upstream is written.
func (m *Manager) StartCommand(ctx context.Context) (Start, error) {
	if err := m.prepareStart(ctx); err != nil {
		return Start{}, fmt.Errorf("prepare the start: %w", err)
	}
	argv := append([]string{m.tools.Path("postgres"), "-D", m.cfg.DataDir}, m.configFileArgs()...)
	for _, s := range pgconf.CommandLine(m.cfg.settings(Conf{})) {
		argv = append(argv, "-c", s.Name+"="+s.Value)
	}
	raised, err := m.raisedLimits(ctx)
	if err != nil {
		return Start{}, fmt.Errorf("prepare the start: %w", err)
	}
	return Start{
		Argv: append(argv, raised...), Env: m.environment(), Dir: m.cfg.DataDir,
		UID: m.os.uid, GID: m.os.gid, Groups: m.os.groups, LogFile: m.cfg.LogFile,
	}, nil
}

func (m *Manager) prepareStart(ctx context.Context) error {
	if err := m.checkDataDir(); err != nil {
		return err
	}
	l, err := m.Local()
	if err != nil {
		return err
	}
	if l.Unfinished != nil && !m.catchingUp.Load() {
		return fmt.Errorf("%w (%s since %s): clone again", ErrUnfinished, l.Unfinished.Kind, l.Unfinished.Since.Format(time.RFC3339))
	}
	if pid, ok := m.RunningPostmaster(); ok {
		return fmt.Errorf("%w already (pid %d)", ErrRunning, pid)
	}
	if err := m.makeRunDirs(); err != nil {
		return err
	}
	if !exists(m.cfg.managedFile()) || !exists(m.cfg.hbaFile()) {
		if _, err := m.Apply(Conf{}); err != nil {
			return err
		}
	}
	if err := errors.Join(m.leaveHBA(), m.leaveMinimal(ctx)); err != nil {
		return err
	}
	return m.makeStandby(m.cfg.DataDir)
}

// configFileArgs names a postgresql.conf outside of the data directory; such a file may name another data directory too.
func (m *Manager) configFileArgs() []string { return configArgs(m.cfg.DataDir, m.cfg.ConfigFile) }

func configArgs(dataDir, configFile string) []string {
	if configFile == filepath.Join(dataDir, "postgresql.conf") {
		return nil
	}
	return []string{"-c", "config_file=" + configFile, "-c", "data_directory=" + dataDir}
}

// limits are the settings that a standby needs at least as high as the primary that wrote its log, which the control file
// tells; with lower ones recovery stops.
var limits = []struct {
	name string
	std  int // PostgreSQL's own default, where the managed file says nothing
	need func(pgconf.ControlData) int
}{
	{"max_connections", 100, func(c pgconf.ControlData) int { return c.MaxConnections }},
	{"max_worker_processes", 8, func(c pgconf.ControlData) int { return c.MaxWorkerProcesses }},
	{"max_wal_senders", 10, func(c pgconf.ControlData) int { return c.MaxWALSenders }},
	{"max_prepared_transactions", 0, func(c pgconf.ControlData) int { return c.MaxPreparedXacts }},
	{"max_locks_per_transaction", 64, func(c pgconf.ControlData) int { return c.MaxLocksPerXact }},
}

// LimitsTooLow reports whether the running server has less of something than the log held here needs. Its replay has then
// stopped until it is started again, with what StartCommand raises.
func (m *Manager) LimitsTooLow(ctx context.Context) (low bool, err error) {
	c, err := m.ControlData(ctx)
	if err != nil {
		return false, err
	}
	err = m.withConn(ctx, "read the limits", func(conn *pgx.Conn) error {
		for _, l := range limits {
			var have int
			if err := conn.QueryRow(ctx, "SELECT current_setting($1)::int", l.name).Scan(&have); err != nil {
				return err
			}
			low = low || have < l.need(c)
		}
		return nil
	})
	return low, err
}

// raisedLimits lifts the limits that are too low to replay the log held here.
func (m *Manager) raisedLimits(ctx context.Context) ([]string, error) {
	c, err := m.ControlData(ctx)
	if err != nil {
		return nil, err
	}
	have := m.lastApplied()
	var args []string
	for _, l := range limits {
		now, err := strconv.Atoi(have[l.name])
		if err != nil {
			now = l.std
		}
		if need := l.need(c); now < need {
			args = append(args, "-c", l.name+"="+strconv.Itoa(need))
		}
	}
	return args, nil
}
