package sim

import (
	"os"
	"runtime/debug"
	"testing"
)

// TestMain gives the collector less to do: a seed allocates much and keeps little.
func TestMain(m *testing.M) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(800)
	}
	os.Exit(m.Run())
}
