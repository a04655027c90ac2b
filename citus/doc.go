// Package citus keeps the Citus metadata of a formation right: in each database, pg_dist_node on the coordinator's primary
// and on every worker primary names the primary of every group and the standbys that may be read from. The Raft leader's
// conductor calls Pool.Reconcile; one call observes all primaries, compares (Diff, pure) and applies the steps. Commands call
// Pool.Status, Plan and Progress, which only look, and through the leader Rebalance, Drain, Undrain and RemoveGroup.
//
// Invariants:
//   - A row keeps its nodeid; only its address changes. At no moment do two rows of a node have one address. A row that somebody
//     deleted is put back with its nodeid as long as another worker has it.
//   - Every transaction that writes metadata first proves its Raft term in matriarch.conductor: a deposed leader writes nothing.
//   - A new session with a coordinator corrects the rows in its first transaction, under a lock that keeps Citus' daemon from
//     carrying old rows to the workers. Nobody else should open sessions in that database of a just promoted coordinator before.
//   - Prepared transactions are recovered only while every primary row leads to a primary of the wanted timeline, checked
//     before and, before the commit, again: otherwise Citus forgets commits that a server in recovery cannot list.
//   - Nodes are added and removed only while every metadata node is in sync, and a node that does not answer holds nobody up.
//     Until then the row of a standby that is gone takes the address of the one that came.
//   - A standby that has a row keeps it for ten seconds of absence, and as long as no other can be read from it may lag.
//   - Entries of pg_dist_poolinfo name a port only, so they hold through failovers. Those that are not ours are left alone, except
//     where citus_pool_port asks for ours.
//   - shouldhaveshards, noderack and clones (citus_add_clone_node) are the operator's.
//   - A Pause holds pg_dist_node on every primary but the changing group's, or on none, and for no longer than 2 s after its
//     conductor fell silent. It looks before it locks. What it writes is where the new primary is: it never goes back. No round
//     of Reconcile runs meanwhile, as it would wait, and then apply what was wanted before.
//   - A database that is not listed any more is left as it is.
//
// A session in each database is also what makes Citus start its maintenance daemon there, which moves shards; the pool keeps one
// open.
//
// The package decides nothing about who is primary, never speaks to the consensus layer, never connects to a standby on
// purpose except one that Pause.Warm is told is the next primary, never logs and never puts a password into an error.
package citus
