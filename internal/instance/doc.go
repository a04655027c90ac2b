// Package instance binds the agent to the real thing: pgmanager for the hands on PostgreSQL, the sentinel for its process.
//
// Called by: cmd. It translates between the group's terms (nodes, epochs, pairs) and PostgreSQL's (addresses, application
// names, settings), and decides nothing.
package instance
