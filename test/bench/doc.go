// Bench measures what the clients of a seven-node formation notice of planned work and of failures, with Matriarch and, for comparison,
// with another manager on the same machine, servers and clients.
//
// Called by: `make bench`. It drives formations from outside: internal/demo for Matriarch (the same verbs that `matriarch demo` offers)
// and the built program for what an operator would type.
//
// Invariants: a figure comes from runs that took place, never from a model; a run that failed is shown and counted in no median; as root
// everything runs in network and process namespaces of its own, so that nothing outlives the program, however it ends.
//
// It must never use what a client or an operator of either system does not have, nor prefer one of them.
package main
