package pgmanager

import (
	"context"
	"fmt"
	"strings"

	"matriarch/pgmanager/pgconf"
)

// Adopt makes the data directory fit to be run by Matriarch: our two roles, and for a running server a way in for the manager.
// Roles of other origin with the same names are refused, and nothing else of the database is touched. After an error the server
// lets in whom it let in before. It may be repeated.
func (m *Manager) Adopt(ctx context.Context, a Adoption) error {
	adopt := m.adoptStopped
	if a.Running {
		adopt = m.adoptRunning
	}
	if err := adopt(ctx, a); err != nil {
		return fmt.Errorf("adopt %s: %w", m.cfg.DataDir, err)
	}
	return nil
}

func (m *Manager) adoptStopped(ctx context.Context, a Adoption) error {
	sql, err := m.roleSQL()
	if err != nil {
		return err
	}
	if err := m.single(ctx, a.ConfigFile, sql); err != nil {
		return fmt.Errorf("make our roles in single-user mode: %w", err)
	}
	a.HBAFile = "" // ours from the first start on
	return m.saveAdopted(a)
}

// roleMark tells our roles from the user's.
const roleMark = "made by Matriarch"

// roleSQL is one statement on one line, as single-user mode wants it: both roles or none. It holds verifiers, no passwords.
func (m *Manager) roleSQL() (string, error) {
	var b strings.Builder
	b.WriteString("DO $matriarch$ BEGIN ")
	for _, r := range []struct{ name, attributes, password string }{
		{m.cfg.Superuser, "SUPERUSER LOGIN", m.cfg.SuperuserPassword},
		{m.cfg.ReplicationUser, "REPLICATION LOGIN", m.cfg.ReplicationPassword},
	} {
		v, err := newVerifier(r.password)
		if err != nil {
			return "", err
		}
		name, ident, mark := pgconf.QuoteLiteral(r.name), pgconf.QuoteIdent(r.name), pgconf.QuoteLiteral(roleMark)
		here := "EXISTS (SELECT FROM pg_catalog.pg_authid WHERE rolname = " + name
		fmt.Fprintf(&b, "IF %s AND pg_catalog.shobj_description(oid, 'pg_authid') IS DISTINCT FROM %s) THEN RAISE EXCEPTION 'role %% exists and was not made by Matriarch: rename it (ALTER ROLE ... RENAME TO ...)', %s; END IF; ", here, mark, name)
		fmt.Fprintf(&b, "IF NOT %s) THEN CREATE ROLE %s; COMMENT ON ROLE %s IS %s; END IF; ", here, ident, ident, mark)
		fmt.Fprintf(&b, "ALTER ROLE %s %s PASSWORD %s VALID UNTIL 'infinity'; ", ident, r.attributes, pgconf.QuoteLiteral(v))
	}
	b.WriteString("END $matriarch$;\n")
	return b.String(), nil
}

// single runs one line of SQL, or none, in single-user mode. The server recovers from a crash first. It leaves log behind that
// a standby can replay, and neither loads libraries nor waits for standbys.
func (m *Manager) single(ctx context.Context, configFile, sql string) error {
	args := append([]string{"--single", "-D", m.cfg.DataDir}, configArgs(m.cfg.DataDir, configFile)...)
	for _, s := range []string{
		"wal_level=logical", "wal_log_hints=on", "shared_preload_libraries=", "exit_on_error=on", "synchronous_standby_names=", "default_transaction_read_only=off",
		"log_destination=stderr", "log_min_messages=warning", "log_statement=none", "log_min_duration_statement=-1", "log_min_error_statement=panic", "log_error_verbosity=terse",
	} {
		args = append(args, "-c", s)
	}
	_, err := m.run(ctx, tool{name: "postgres", in: sql, args: append(args, MaintenanceDB)})
	return err
}
