// Package fence is the sentinel: the small process that is the parent of PostgreSQL, promotes it on request, and ends it when its lease does.
//
// `matriarch sentinel` calls Run. The node's agent calls Spawn and Dial, and, when the sentinel is frozen or dead, Processes and KillAll.
// The sentinel outlives the agent: restarts and upgrades of the agent leave PostgreSQL running. Hence its protocol is frozen; the golden
// bytes in protocol_test.go may get new neighbours, never other contents.
//
// Invariants:
//
//   - PostgreSQL is started as a standby only, and only when nothing of it runs.
//
//   - The sentinel promotes only under a valid deadline of exactly the epoch asked for and of its own instance; an epoch promotes once.
//
//   - A server that is or may become writable (promotion ordered, or standby.signal missing) has a deadline. SoftStop before it the
//     postmaster gets SIGQUIT, at it everything gets SIGKILL. A promotion that the sentinel did not order is fenced at once.
//
//   - A deadline moves later only by the epoch the server was promoted under. Later epochs do not extend it.
//
//   - Event exited, an answer to stop or kill, and Status.Left == 0 mean: no process of that PostgreSQL is left. For a server started here that is
//     exact, since the sentinel is a child subreaper and wait4 has no child left; for an adopted one it is a scan of /proc (Status.Weak).
//
//   - One goroutine, locked to one thread, holds all state, forks, waits and kills. While the server is writable that goroutine touches no
//     file outside /proc but the watchdog's device: a hung disk does not keep it from fencing. Its log is written by another goroutine and
//     drops lines rather than wait.
//
//   - With a watchdog the machine is reset by the deadline when this process cannot fence: it is patted only while its timeout ends before the
//     deadline, and stopped only when no process of the server is left.
//
// It must never use the network, decide about leases, extend a deadline by itself, or start a writable server. Only one Run may live in a
// process, and that process may have no children of other origin.
package fence
