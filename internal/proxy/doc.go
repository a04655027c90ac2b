// Package proxy lets clients reach a PostgreSQL of the right role through any node: one listener for the coordinator's primary, one for
// any worker's primary, one for standbys.
//
// cmd makes a Proxy with New and runs it beside the agent. Roles come from the Source alone, which cmd implements over the replicated
// state; the proxy never asks a server what it is. How far a node that is cut off from the Raft leader may trust its old state is the
// Source's decision: it lists nobody, or the last it knew.
//
// A session passes through three steps. The proxy reads the client's startup packets, up to the first encrypted byte or the server's
// first answer. It finds a server that takes them, waiting for one if need be (WaitLimit). From then on the kernel copies between
// the two sockets (splice) and the proxy sees nothing. So a client meets a switchover as one slow connection attempt:
//   - nobody is listed, or nobody answers: the client waits;
//   - a server answers 57P03 (starting, stopping), or 28000 in the first moments of its role (its pg_hba.conf is about to open): the client
//     waits too. A server that agrees to encryption is committed to, since its later answers cannot be read;
//   - after WaitLimit the client gets 57P03 with a sentence that says what was waited for.
//
// A cancel request names a session by process and secret only, and the proxy does not know who has it: it goes to every listed server, of
// which one acts. An *encrypted* cancel request (libpq 17, pgx) cannot be told from a session and reaches one server, so behind a
// listener with several servers it may reach the wrong one, which ignores it. On the coordinator's listener it always works.
//
// PostgreSQL sees the proxy's address as the client's, in pg_hba.conf and pg_stat_activity: rules by client address do not hold behind
// it. It does not read the PROXY protocol, so none is sent. What can be accepted is version 2 from a load balancer in front, so that limits
// and the log know the client; whoever reaches that listener can claim any address, and nothing but these depends on it.
//
// Invariants:
//   - a session belongs to a (node, epoch) pair and ends at once, on both sides and without a reset, when its listener's kind no longer lists
//     that pair. Draining targets keep their sessions and get no new ones;
//   - no client is served by a server that was not listed for the listener's kind when it was attached;
//   - accepting never waits for a client or a server; every connection, waiting ones included, counts against MaxConns;
//   - when Run returns, every connection is closed and no goroutine is left. A restart of the agent therefore ends proxied sessions.
//
// It must never decide who is primary, send a byte of its own to a server, nor keep or log what a startup packet says.
package proxy
