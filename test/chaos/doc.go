// Chaos breaks a formation of five nodes with real PostgreSQL at random for some minutes, or as in an incident that others had, and checks that it
// kept its promises.
//
// Called by: `make chaos`, `.ci/run`, and TestIncidents. Group 0, the coordinator's, has three nodes, group 1 two. Each node is a host: a network
// namespace, two disks and a cgroup of its own, driven by the built program as an operator would. Clients add numbers to sets, directly and through the
// coordinator, and work on registers; a sampler tries a write on every node ten times a second.
//
// Invariants: the seed alone decides which faults come in which order, how long they last and whom they aim at; who is primary at that moment
// is not in the seed. Clients and sampler reach every node whatever is cut, so that a primary that should not acknowledge has every
// opportunity to. Everything lives in namespaces that end with the program, however it ends; a disk that hangs is mended first.
//
// It must never judge by what a node says of itself: what was acknowledged to clients counts, and what is in the tables at the end.
package main
