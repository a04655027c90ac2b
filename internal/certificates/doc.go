// Package certificates keeps a node's certificates: its own for the peer port, and those of its PostgreSQL. It issues them, renews
// them after two thirds of their life, follows a change of the CA or of files that the operator brought, and keeps the list of
// removed nodes' certificates that PostgreSQL refuses.
//
// The composition root makes one Keeper, calls Ensure before the first handshake and Run afterwards; the calls of `matriarch
// certificates` and `matriarch ca rotate` reach the same Keeper, which does one thing at a time.
//
// Invariants: a file changes before anything that is told of it; nothing is ever issued by a CA that is only about to be trusted; what
// is replaced stays valid to its end, so that no connection is cut. The replacement of a CA has three steps (Trust, Sign, Drop), each
// durable and safe to repeat, and the package itself never goes from one to the next: who asks has seen that all nodes took the one
// before.
//
// The package must never log a key or send one to a node that did not prove its membership.
package certificates
