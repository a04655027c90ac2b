// Package clidoc turns the tree of verbs into man pages and shell completions, so that neither can say what the program does not know.
//
// cmd calls it: the verb completion prints what a shell sources, the hidden verb manpages writes the pages that the packages install.
//
// Invariants: the same tree gives the same bytes; hidden verbs and flags appear nowhere; every byte of a tree is escaped for where it goes.
//
// It must never run a verb, read a file or look at the machine.
package clidoc
