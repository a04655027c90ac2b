// Command matriarch is the one binary: the node (run, sentinel), the way into a cluster (bootstrap, join, recover) and the operator's verbs.
//
// main.go reads the command line; each verb has its own file; wire.go is the only place where the parts are put together. Verbs that look at
// or change a cluster go through internal/admin and so work on any host of it.
//
// Exit codes: 0 done, 1 refused or failed, 2 the command line was wrong. Results go to standard output, everything else to standard error.
// Each verb handles its own signals: the context of a command is not ended by any.
package main
