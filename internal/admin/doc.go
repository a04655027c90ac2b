// Package admin is what operators see and ask for, as data: a node's Status, the calls that carry it between
// nodes and the command line, and the views that list, the HTTP API and the demo share.
//
// A node registers the calls with Register. The command line opens a Client with the node's own certificate and asks any node.
//
// Invariants: a Status never holds a secret nor the hash of one; views are pure functions of a Status; one Request carries exactly one
// command, and only commands that operators may give.
//
// It must never decide anything about the cluster, nor touch PostgreSQL or a process.
package admin
