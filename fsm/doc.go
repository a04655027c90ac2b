// Package fsm holds the replicated truth of a cluster: its nodes, groups, leases, synchronous sets, grants and join tokens.
//
// Everything here is pure. Apply is a function (State, index, Command) -> (State, Result): it reads no clock, starts no
// goroutine, does no I/O and never depends on map order, so that every node reaches the same state from the same log.
// Times and UUIDs inside commands are stamped by the proposer and serve people only, never a decision.
//
// Called by: consensus (machine.go adapts the package to raft.FSM), the conductor and the agents (which read State).
//
// Invariants, checked by Invariant and by the simulation after every entry:
//   - epochs of a group only rise, and each Grant has its own;
//   - while a lease is held nobody else is granted one for that group;
//   - while a group keeps a list of who may be granted its lease, nobody else is, and its last holder is on it (failsafe);
//   - any set of nodes that can acknowledge a commit meets any set that can elect a primary: the pairs of Sync are replaced
//     one by one, never before the new one is confirmed.
//
// A State is immutable once published. Apply copies what it changes; nobody else may write to a State.
package fsm
