package citus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// EnsureDatabase makes, on one primary, the database, the extension, the conductor's table and the password with which the
// nodes log in to each other. What is there already stays. The server must have citus in shared_preload_libraries. Reconcile
// does it where it finds something missing. The error is ErrDeposed when the database has seen a higher term.
func (p *Pool) EnsureDatabase(ctx context.Context, term uint64, addr Addr, database string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serve(term)
	return p.ensureDatabase(ctx, addr, database)
}

func (p *Pool) ensureDatabase(ctx context.Context, addr Addr, database string) error {
	if err := p.createDatabase(ctx, addr, database); err != nil {
		return fmt.Errorf("create database %s on %s: %w", database, addr, err)
	}
	c, err := p.dial(ctx, addr, database)
	if err != nil {
		return fmt.Errorf("prepare database %s: %w", database, err)
	}
	defer closeConn(c)
	if err := p.prepareDatabase(ctx, c); err != nil {
		return fmt.Errorf("prepare database %s on %s: %w", database, addr, err)
	}
	return nil
}

// Serve ends the sessions with databases that are not listed any more and returns their names. They are left as they are:
// nobody drops them, and nobody keeps their rows right.
func (p *Pool) Serve(databases []string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var left []string
	for at, s := range p.sessions {
		if slices.Contains(databases, at.database) {
			continue
		}
		closeConn(s.Conn)
		delete(p.sessions, at)
		delete(p.recovery, at.database)
		delete(p.told, at.database)
		delete(p.away, at.database)
		left = append(left, at.database)
	}
	slices.Sort(left)
	return slices.Compact(left)
}

func (p *Pool) createDatabase(ctx context.Context, addr Addr, database string) error {
	c, err := p.dial(ctx, addr, "postgres")
	if err != nil {
		return err
	}
	defer closeConn(c)
	var there bool
	if err := c.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", database).Scan(&there); err != nil || there {
		return err
	}
	_, err = c.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{database}.Sanitize())
	const duplicate = "42P04"
	if sqlState(err) == duplicate {
		return nil
	}
	return err
}

func (p *Pool) prepareDatabase(ctx context.Context, c *pgx.Conn) error {
	if _, err := c.Exec(ctx, "CREATE EXTENSION IF NOT EXISTS citus"); err != nil {
		return fmt.Errorf("create extension citus (is it installed, and first in shared_preload_libraries?): %w", err)
	}
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		for _, sql := range []string{
			"SET LOCAL citus.enable_ddl_propagation = off", // every node gets its own
			"SET LOCAL client_min_messages = warning",
			"CREATE SCHEMA IF NOT EXISTS matriarch",
			`CREATE TABLE IF NOT EXISTS matriarch.conductor (
				one bool PRIMARY KEY DEFAULT true CHECK (one), term bigint NOT NULL, at timestamptz NOT NULL DEFAULT now())`,
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("create the conductor's table: %w", err)
			}
		}
		if err := prove(ctx, tx, p.term); err != nil {
			return err
		}
		return p.writePassword(ctx, tx)
	})
}

// authinfo is what Citus' links of the superuser need beside certificates; empty: nothing.
func (p *Pool) authinfo() string {
	if a := p.access(); !a.Security.PasswordLinks() && !a.Pooled {
		return ""
	}
	return "password='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(p.password()) + "'"
}

// hashOf hides what authinfo holds as Observe does.
func hashOf(authinfo string) string {
	if authinfo == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(authinfo))
	return hex.EncodeToString(sum[:])
}

// writePassword stores the password for all nodes, or takes it away where links show certificates. It travels as a parameter, which
// this session's server does not log.
func (p *Pool) writePassword(ctx context.Context, tx pgx.Tx) error {
	info := p.authinfo()
	if info == "" {
		if _, err := tx.Exec(ctx, "DELETE FROM pg_dist_authinfo WHERE rolename = current_user AND nodeid = 0"); err != nil {
			return fmt.Errorf("take the password for other nodes away: %w", err)
		}
		return nil
	}
	var have *string
	err := tx.QueryRow(ctx, "SELECT (SELECT authinfo FROM pg_dist_authinfo WHERE rolename = current_user AND nodeid = 0)").Scan(&have)
	switch {
	case err != nil || have != nil && *have == info:
	case have == nil:
		_, err = tx.Exec(ctx, "INSERT INTO pg_dist_authinfo (nodeid, rolename, authinfo) VALUES (0, current_user, $1)", info)
	default:
		_, err = tx.Exec(ctx, "UPDATE pg_dist_authinfo SET authinfo = $1 WHERE rolename = current_user AND nodeid = 0", info)
	}
	if err != nil {
		return fmt.Errorf("store the password for other nodes: %w", err)
	}
	return nil
}
