package pgmanager

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLastWords(t *testing.T) {
	const begin = "2026-01-02 03:04:05.678 UTC [12] LOG:  starting PostgreSQL 15.9 on x86_64\n"
	const killed = "2026-01-02 03:04:06.678 UTC [12] LOG:  server process (PID 77) was terminated by signal 9: Killed\n2026-01-02 UTC [12] DETAIL:  Failed process was running: SELECT 'secret'\n"
	for _, tt := range []struct{ name, log, want string }{
		{"empty", "", ""},
		{"killed", begin + killed, "server process (PID 77) was terminated by signal 9: Killed (by the kernel, when memory was short? 'dmesg' or 'journalctl -k' tells)"},
		{"a run before", begin + killed + begin, ""},
		{"aborted", begin + "x [1] LOG:  checkpointer process (PID 3) was terminated by signal 6: Aborted\n", "checkpointer process (PID 3) was terminated by signal 6: Aborted"},
		{"panic", begin + "x [1] PANIC:  could not fdatasync file \"000\": Input/output error\n", "could not fdatasync file \"000\": Input/output error"},
		{"words of a client", begin + "x [1] ERROR:  relation \" was terminated by signal \" does not exist\n", ""},
		{"a long log", begin + strings.Repeat("x [1] LOG:  checkpoint complete\n", 2000) + killed, "server process (PID 77) was terminated by signal 9: Killed (by the kernel, when memory was short? 'dmesg' or 'journalctl -k' tells)"},
	} {
		file := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(file, []byte(tt.log), 0o600); err != nil {
			t.Fatal(err)
		}
		m := &Manager{cfg: Config{LogFile: file}}
		if got := m.LastWords(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	if got := (&Manager{cfg: Config{LogFile: "/nowhere"}}).LastWords(); got != "" {
		t.Errorf("no log says %q", got)
	}
}
