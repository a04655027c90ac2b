// Package doctor looks at a host before it becomes a node, and afterwards, and says what is wrong and what to do.
//
// cmd calls Gather for the facts and Examine for the findings. Gather does all the looking; Examine is a pure table of checks over the facts,
// so every check is tested with facts that no real host has.
//
// Invariants: nothing on the host is changed, but for one small file in each directory whose fsync is timed, which is removed; every look ends
// within its time; a finding that is not ok says what to do.
//
// It must never repair anything, start or stop anything, nor show a secret.
package doctor
