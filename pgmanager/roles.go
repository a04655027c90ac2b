package pgmanager

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/pgmanager/pgconf"
)

// EnsureRoles gives the superuser and the replication role their attributes and passwords, and makes the role of Citus' links.
// PostgreSQL sees a SCRAM verifier only, so its log cannot show a password. Passwords have to be ASCII.
func (m *Manager) EnsureRoles(ctx context.Context) error {
	return m.ensureRoles(ctx, *m.passwords.Load())
}

// passwords are those in force; other is a second one that a server may still, or already, know for the superuser.
type passwords struct{ super, repl, other string }

// StagePasswords has logins try a superuser password that is not in force everywhere yet.
func (m *Manager) StagePasswords(super string) {
	now := *m.passwords.Load()
	now.other = super
	m.passwords.Store(&now)
}

// Password is the superuser's, as it is in force.
func (m *Manager) Password() string { return m.passwords.Load().super }

// SetPasswords gives the roles of a primary new passwords, which are not used for anything else before UsePasswords.
func (m *Manager) SetPasswords(ctx context.Context, super, repl string) error {
	return m.ensureRoles(ctx, passwords{super: super, repl: repl})
}

// UsePasswords puts passwords in force. The one before is still tried: a standby may not have replayed the change.
func (m *Manager) UsePasswords(super, repl string) {
	now := *m.passwords.Load()
	if now.super != super {
		now.other = now.super
	}
	now.super, now.repl = super, repl
	m.passwords.Store(&now)
}

func (m *Manager) ensureRoles(ctx context.Context, pw passwords) error {
	return m.withConn(ctx, "ensure roles", func(c *pgx.Conn) error {
		if err := ensureRole(ctx, c, m.cfg.Superuser, "SUPERUSER LOGIN", pw.super); err != nil {
			return err
		}
		if err := ensureRole(ctx, c, m.cfg.ReplicationUser, "LOGIN REPLICATION", pw.repl); err != nil || !m.cfg.Citus {
			return err
		}
		return ensureLinkRole(ctx, c)
	})
}

// ensureLinkRole makes a role without login and rights, of this server only: every group gets its own in the same way.
func ensureLinkRole(ctx context.Context, c *pgx.Conn) error {
	var there bool
	if err := c.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", pgconf.LinkRole).Scan(&there); err != nil || there {
		return err
	}
	_, err := c.Exec(ctx, "CREATE ROLE "+pgconf.LinkRole+" NOLOGIN")
	return err
}

func ensureRole(ctx context.Context, c *pgx.Conn, name, attributes, password string) error {
	var stored string
	var fits bool
	err := c.QueryRow(ctx, `SELECT coalesce(rolpassword, ''), rolcanlogin AND (rolsuper OR (rolreplication AND NOT $2))
		AND (rolvaliduntil IS NULL OR rolvaliduntil = 'infinity') FROM pg_authid WHERE rolname = $1`, name, strings.HasPrefix(attributes, "SUPERUSER")).Scan(&stored, &fits)
	verb := "ALTER"
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		verb = "CREATE"
	case err != nil:
		return err
	case fits && verifierFits(stored, password):
		return nil
	}
	verifier, err := newVerifier(password)
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, fmt.Sprintf("%s ROLE %s %s PASSWORD %s VALID UNTIL 'infinity'", verb, pgconf.QuoteIdent(name), attributes, pgconf.QuoteLiteral(verifier)))
	return err
}

const scramIterations = 4096 // PostgreSQL's default

// newVerifier renders what PostgreSQL stores for a password under scram-sha-256.
func newVerifier(password string) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	return verifier(password, salt, scramIterations)
}

func verifier(password string, salt []byte, iterations int) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("derive the SCRAM verifier: %w", err)
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac(salted, "Server Key"))), nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// verifierFits reports whether a stored verifier belongs to a password.
func verifierFits(stored, password string) bool {
	rest, ok := strings.CutPrefix(stored, "SCRAM-SHA-256$")
	head, _, ok2 := strings.Cut(rest, "$")
	count, salt64, ok3 := strings.Cut(head, ":")
	n, err := strconv.Atoi(count)
	salt, err2 := base64.StdEncoding.DecodeString(salt64)
	if !ok || !ok2 || !ok3 || err != nil || err2 != nil || n < 1 || n > 1_000_000 {
		return false
	}
	want, err := verifier(password, salt, n)
	return err == nil && subtle.ConstantTimeCompare([]byte(want), []byte(stored)) == 1
}

// EnsureDatabase creates a database if it is missing.
func (m *Manager) EnsureDatabase(ctx context.Context, name string) error {
	return m.withConn(ctx, "ensure database "+name, func(c *pgx.Conn) error {
		var there bool
		if err := c.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&there); err != nil || there {
			return err
		}
		_, err := c.Exec(ctx, "CREATE DATABASE "+pgconf.QuoteIdent(name))
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == duplicateDatabase || pg.Code == uniqueViolation) {
			return nil // another session was quicker
		}
		return err
	})
}

const (
	duplicateDatabase = "42P04"
	uniqueViolation   = "23505"
)
