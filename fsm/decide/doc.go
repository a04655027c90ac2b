// Package decide takes every decision of the system, and is pure: a decision is a function of a View, which holds all inputs,
// the time included.
//
// Node says what one node does about its PostgreSQL; Cluster says what the conductor on the Raft leader does about a group.
// Each is the first matching row of an ordered table of named rules; safety rules stand first. The rule's id and one
// sentence with its numbers reach the log, the event history, a metric label and `matriarch explain`.
//
// Called by: internal/agent (Node), internal/conductor (Cluster, Sufficient, Best), consensus (Voters).
//
// It must never read a clock, start a goroutine, do I/O or depend on the order of a map.
package decide
