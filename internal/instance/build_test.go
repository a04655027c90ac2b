package instance

import (
	"os"
	"path/filepath"
	"testing"

	"matriarch/fsm/decide"
	"matriarch/pgmanager"
)

// A rewound server whose log is gone is not waited for; what an earlier server said does not count.
func TestHopeless(t *testing.T) {
	p := &Postgres{cfg: pgmanager.Config{LogFile: filepath.Join(t.TempDir(), "log")}}
	log := "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 0000000D0000000000000012 has already been removed\n"
	if err := os.WriteFile(p.cfg.LogFile, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	p.remember(decide.Conf{})
	if err := p.hopeless(7); err != nil {
		t.Errorf("a server that has just begun: %v", err)
	}
	if err := p.hopeless(0); err == nil {
		t.Error("a server that has ended is waited for")
	}
	if err := os.WriteFile(p.cfg.LogFile, []byte(log+log), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.hopeless(7); err == nil {
		t.Error("a server whose log is gone is waited for")
	}
}
