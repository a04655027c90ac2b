// Package pgconf holds what Matriarch knows about PostgreSQL without touching one: the managed settings, pg_hba rules,
// connection strings, log positions, timeline histories and the text formats of PostgreSQL's own files and tools.
//
// It is called by pgmanager, which does the reading and writing, and by the decision tables, which compare positions.
//
// Invariants:
//   - pure: no file, clock, goroutine or randomness, and equal input gives equal bytes;
//   - what is rendered for PostgreSQL is quoted so that no value can begin a second setting;
//   - parsers return errors for foreign input and never panic.
//
// It knows PostgreSQL 14 to 18.
package pgconf
