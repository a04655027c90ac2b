package pgmanager

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"matriarch/pgmanager/pgconf"
)

// What standbys need: one sender each and one more while it clones, and a slot each.
const (
	enoughSenders = 4
	enoughSlots   = 4
)

// notes says what adoption changes, and what has to wait for a restart.
func (m *Manager) notes(a Adoption, s map[string]string) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if a.Running {
		if lacks := m.lacks(s); len(lacks) > 0 {
			add("before standbys can stream, the running server needs a restart: %s; once it is adopted, stop it: matriarch starts it again", strings.Join(lacks, "; "))
		}
		add("fencing is weak until the server's next start, which matriarch makes")
	}
	if names := s["synchronous_standby_names"]; names != "" {
		add("synchronous_standby_names = %s is replaced by the group's own", pgconf.QuoteSetting(names))
	}
	if auto, err := os.ReadFile(filepath.Join(m.cfg.DataDir, "postgresql.auto.conf")); err == nil {
		if _, removed := pgconf.StripManaged(auto); len(removed) > 0 {
			add("postgresql.auto.conf: %s will be removed, matriarch manages them", strings.Join(removed, ", "))
		}
	}
	add("whatever starts this PostgreSQL today must not do so any more (Debian: systemctl disable postgresql): matriarch run starts it")
	return out
}

// lacks names the settings of a running server that keep standbys away and cannot change while it runs.
func (m *Manager) lacks(s map[string]string) []string {
	var out []string
	few := func(name string, least int) {
		if n, err := strconv.Atoi(s[name]); err != nil || n < least {
			out = append(out, fmt.Sprintf("%s is %s", name, s[name]))
		}
	}
	if l := s["wal_level"]; l != "replica" && l != "logical" {
		out = append(out, "wal_level is "+l)
	}
	few("max_wal_senders", enoughSenders)
	few("max_replication_slots", enoughSlots)
	if !listensOn(s["listen_addresses"], m.cfg.Host) {
		out = append(out, fmt.Sprintf("listen_addresses is %s, without %s", pgconf.QuoteSetting(s["listen_addresses"]), m.cfg.Host))
	}
	if m.cfg.Citus && !slices.ContainsFunc(strings.Split(s["shared_preload_libraries"], ","), func(l string) bool { return strings.Trim(l, `" `) == "citus" }) {
		out = append(out, "shared_preload_libraries lacks citus")
	}
	return out
}

// listensOn judges by the spelling; other names for the same address count as missing.
func listensOn(addresses, host string) bool {
	for a := range strings.SplitSeq(addresses, ",") {
		switch a = strings.Trim(a, `" `); {
		case a == "*", a == "0.0.0.0", a == host, a == "::" && strings.Contains(host, ":"):
			return true
		case a == "localhost" && (host == "127.0.0.1" || host == "::1"):
			return true
		}
	}
	return false
}

func (m *Manager) weakCopies(c pgconf.ControlData) []string {
	if c.Checksums || c.WALLogHints {
		return nil
	}
	return []string{"neither data checksums nor wal_log_hints were on: until the next checkpoint after a restart a diverged copy has to be cloned anew"}
}

// recoveryLimit bounds a recovery in single-user mode.
const recoveryLimit = 5 * time.Minute

// leaveMinimal makes log that was written under wal_level minimal fit for a start as standby. No standby can have followed such
// a server, so that there is no other copy to differ from.
func (m *Manager) leaveMinimal(ctx context.Context) error {
	c, err := m.ControlData(ctx)
	if err != nil || c.WALLevel != "minimal" || exists(filepath.Join(m.cfg.DataDir, "standby.signal")) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recoveryLimit) // begun again it would take as long again
	defer cancel()
	m.log.Info("raising wal_level from minimal", "path", m.cfg.DataDir)
	if err := m.single(ctx, m.cfg.ConfigFile, ""); err != nil {
		return fmt.Errorf("raise wal_level: %w", err)
	}
	return nil
}
