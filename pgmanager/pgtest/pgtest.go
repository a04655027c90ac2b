package pgtest

import "os"

// Bin is the folder of the programs to test, from MATRIARCH_PG_BIN; empty stands for the newest of the distribution, as in
// pgmanager.Find.
func Bin() string { return os.Getenv("MATRIARCH_PG_BIN") }
