// Package monitoring holds the alert rules and the dashboard, and knows which metrics and labels they use.
//
// Called by: its own tests, which hold every name against what a node exports, and the end-to-end test that holds them against real nodes.
//
// Invariants: an alert names a runbook that exists; a query uses nothing that no node exports, but for what Prometheus adds itself.
//
// It must never be needed by the program.
package monitoring
