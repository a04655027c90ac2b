// Package config reads, checks and writes the one YAML file that tells a node who and where it is.
//
// The file holds what belongs to this host: names, addresses, directories. What belongs to the cluster (lease times, durability, the
// groups) lives in the replicated state, and secrets live in files of mode 0600 in the directory that [Config.SecretsDir] names; neither
// ever enters this file. bootstrap and join write it, run and the other verbs read it.
//
// Invariants: a key that is not known is an error, never ignored. The struct is the only description: the reference
// (docs/configuration.md) and the sample (sample.yaml) are made from it by `go generate`, and tests compare them.
//
// The package must never look at the machine beyond the file itself: whether a directory exists, a port is free or PostgreSQL is
// installed is found out by those who use them.
package config

//go:generate go test -run ^TestGenerated -update .
