// Package pgmanager is the hands on one PostgreSQL: it finds the programs, makes, clones and rewinds the data directory,
// writes the managed files, observes the server and talks SQL to it.
//
// The node loop in internal/agent calls it; the conductor uses it through the agent. The sentinel (pgmanager/fence) is the
// parent of the postmaster: this package only builds the start command and never starts, stops or promotes a server.
//
// Invariants:
//   - a data directory that is started has standby.signal, our include line, and no unfinished clone or rewind;
//   - what has to survive a clone or a rewind lives in RunDir, outside the data directory, written by rename and fsync;
//   - no data directory is ever deleted: it is renamed aside; a rewind copies the log it discards aside first;
//   - a promise only rises, and no credential is written for an epoch below it;
//   - a setting counts as changed only when the running server shows the effective value.
//
// It must never decide: no consensus, no lease, no retries beyond the caller's context. Passwords go through files with
// mode 0600 only, never through arguments, logs or SQL text.
package pgmanager
