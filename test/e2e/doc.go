// Package e2e tests the built program from outside, with real PostgreSQL: what an operator and a client can see when
// processes die, freeze, come back and lie.
//
// Called by: `go test`. Every test has a cluster of its own, no more than two run at once.
package e2e
