// Chaos breaks a formation of five nodes with real PostgreSQL at random for some minutes, and checks that it kept its promises.
//
// Called by: `make chaos`. Group 0 has three nodes, group 1 two, each in a network namespace of its own, driven by the built program as an
// operator would. Clients add numbers to a set and work on registers; a sampler tries a synchronous write on every node ten times a second.
//
// Invariants: the seed alone decides which faults come in which order, how long they last and whom they aim at; who is primary at that moment
// is not in the seed. Clients and sampler reach every node whatever is cut, so that a primary that should not acknowledge has every
// opportunity to. Everything lives in namespaces that end with the program, however it ends.
//
// It must never judge by what a node says of itself: what was acknowledged to clients counts, and what is in the tables at the end.
package main
