// Package demo plays a whole formation on this machine: seven nodes on loopback addresses, each made and run by the same verbs that a
// real host uses. `matriarch demo` calls it, and scripts that measure.
//
// Every node is its own processes with its own configuration, state directory and log; the package only starts commands, kills processes
// and asks the nodes as any operator would.
//
// Invariants: a directory is removed only if it carries the demo's mark; a process is killed only if its command line or its working
// directory lies in that directory; nothing here gives a node what a real deployment lacks.
package demo
