// Package api is a node's HTTP interface: health checks for load balancers, the formation as JSON, and metrics. Paths, status codes and
// keys are Patroni's, so that what was made for Patroni works; keys of ours come in addition.
//
// cmd serves it on the configured address. Everything it tells comes from one admin.Status per request, which costs no I/O.
//
// Invariants: nothing is changed unless Access allows it and the request carries a credential; /primary answers 200 only while the lease is valid and PostgreSQL is open to clients under it; a slow or
// silent client costs one connection for a bounded time.
//
// It must never reach another node or PostgreSQL to answer a read, nor show a secret.
package api
