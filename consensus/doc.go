// Package consensus keeps one replicated state on all nodes, by an embedded Raft peer each, and tells one of them that it leads.
// It is the only importer of hashicorp/raft, raft-boltdb and memberlist.
//
// Called by: cmd, which wires it. The agent uses State, Submit and Keepalive, the conductor runs as Config.Lead.
//
// Invariants
//   - ONE goroutine a term (tick.go) proposes everything, so the order in the log is the order of the decisions. A keepalive is
//     answered by the state right after its own log entry and by nothing else; deadlines move as the keepalive enters it.
//   - Nothing is answered, expired or led before a Barrier of the term has been applied and the term is still the same.
//   - An entry is void in any other term than the one it was decided in (guard.go).
//   - VerifyLeader, State() == Leader, heartbeats and gossip prove nothing and are never asked for a proof.
//   - Raft knows nodes by UUID only (book.go): addresses are hints, found in state, gossip or log, checked by every connection.
//   - A leader whose own log write hangs falls silent; a vote is stored with its term in one write (store.go, net.go).
//   - Config.Lead has returned before the next term starts it again.
//
// It must never decide about PostgreSQL, and never touch a lease except by log entries.
package consensus
