// Package testkit runs whole clusters of the real program on this machine, for tests: nodes on 127.x.y.z addresses of their
// own, real PostgreSQL, real signals.
//
// Called by: the tests below test/. A test reads like a story: Bootstrap, Join, WaitHealthy, Write, Kill, WaitPrimary, Check.
// Every helper ends the test when it cannot do its part. Nothing outlives a test: its processes are found by their working
// directory and their command line, and a small guardian process does the same when the test program itself dies.
//
// Environment: MATRIARCH_PG_BIN names the folder of the PostgreSQL to test with, MATRIARCH_BIN a program to test instead of
// building one, MATRIARCH_KEEP=1 keeps the directories.
package testkit
