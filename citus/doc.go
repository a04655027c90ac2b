// Package citus keeps the Citus metadata of a formation right: in each database, pg_dist_node on the coordinator's primary
// and on every worker primary names the primary of every group. The Raft leader's conductor calls Pool.Reconcile; one call
// observes all primaries, compares (Diff, pure) and applies the steps.
//
// Invariants:
//   - A row keeps its nodeid; only its address changes. At no moment do two rows of a node have one address.
//   - Every transaction that writes metadata first proves its Raft term in matriarch.conductor: a deposed leader writes nothing.
//   - A new session with a coordinator corrects the rows in its first transaction, under a lock that keeps Citus' daemon from
//     carrying old rows to the workers. Nobody else should open sessions in that database of a just promoted coordinator before.
//   - Prepared transactions are recovered only while every primary row leads to a primary of the wanted timeline, checked
//     before and, before the commit, again: otherwise Citus forgets commits that a server in recovery cannot list.
//   - Nodes are added and removed only while every metadata node is in sync, and a node that does not answer holds nobody up.
//
// A session in each database is also what makes Citus start its maintenance daemon there; the pool keeps one open.
//
// The package decides nothing about who is primary, never speaks to the consensus layer, never connects to a standby on
// purpose, never logs and never puts a password into an error.
package citus
