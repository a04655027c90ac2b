// Package obs is what a node shows of itself: its log, its events and its metrics.
//
// cmd builds one logger, one [Metrics] and one [Events] for a node and hands them to the parts; there is nothing global. The log is
// chatter for whoever looks for a cause. An event is a fact of the cluster's life (promoted, fenced, failed over), rare and typed, and
// reaches the log, a counter and a short memory that the API shows. Metrics carry Patroni's names where Patroni has one, so that its
// dashboards work, and matriarch_* for the rest.
//
// Invariants: a steady state logs nothing at info and emits no event; nothing here blocks on the network or fails its caller; all methods
// may be called from any goroutine.
//
// The package must never see a secret: callers pass names, numbers and sentences, not connection strings. It must never decide anything.
package obs
