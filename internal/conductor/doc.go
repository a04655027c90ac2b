// Package conductor holds the duties of the Raft leader: who is primary in each group, and pg_dist_node.
//
// Run serves one term of leadership and returns when it ends. The loop gathers what it sees into a decide.GroupView per
// group, asks the pure table, and carries the answer out: recruiting calls run beside it and report back by channel.
// Citus metadata is reconciled by a second goroutine, so that a slow database never delays an election.
//
// Called by: cmd through consensus, the simulation.
//
// Invariants: nothing is decided before the leader's Barrier; every destructive command carries the epoch it was decided on.
// It must never touch a PostgreSQL itself, nor grant a lease that is not free.
package conductor
