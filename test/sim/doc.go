// Package sim runs whole clusters in a testing/synctest bubble: real consensus over a fake network with real TLS, real agents and
// conductors, and a model of PostgreSQL and its sentinel. Faults come from a seed.
//
// After every change of the model it checks that at most one server of a group accepts writes, that a server which opens for
// clients, and the primary at the end, has every acknowledged write and everything that a reader saw, that nobody streams from
// a history that is not its own, and that fsm.Invariant holds on every node after every entry. At the end all faults are healed and
// the cluster must converge.
//
// A World can live without one of the rules that keep writes (rules.go); then something must break.
//
// A seed fixes faults and their times. Raft's own timers and the order of goroutines are not under its control, so a failure that
// hangs on those may need several runs of its seed.
//
// Called by: go test. It must never know more of PostgreSQL than the model shows, nor help the agents.
package sim
