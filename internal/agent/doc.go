// Package agent is a node's loop: observe PostgreSQL, decide by the pure table of fsm/decide, act.
//
// One goroutine owns the agent's state (loop.go). At most one action runs at a time, in a job that reports back by channel; a
// safety rule cancels the job. A second goroutine sends keepalives and never waits for PostgreSQL (keepalive.go). A third
// keeps the sentinel's heartbeat (heartbeat.go), a fourth asks the members for their words when no leader answers (failsafe.go), a
// fifth finds out whether PostgreSQL is sick (health.go): it hangs alone when a disk does. A sixth looks after permanent replication slots
// (slots.go).
//
// Called by: cmd, the simulation. PostgreSQL, the sentinel and the control plane are interfaces declared in ports.go.
//
// Invariants:
//   - PostgreSQL becomes writable only by Promote, under a lease whose keepalive was answered for the same epoch;
//   - a promise is durable, and its node detached from every older epoch, before it is answered;
//   - a word not to become primary is durable before it is given, and no promotion begins while it lasts;
//   - the lease is released only after the sentinel has seen the last process go.
//
// It must never start a writable server, renew a lease past a silent sentinel, or act on a decision made under another epoch.
package agent
