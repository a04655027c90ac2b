package pgmanager

import (
	"bytes"
	"io"
	"os"
	"strings"
)

const tailSize = 16 << 10 // bytes of the log that are looked through

// LastWords is what the server's log says of why it ended by itself: that a process of it was killed, as the kernel does when memory is
// short, or that it gave up. Empty where it says nothing, in a language other than English, or elsewhere than on stderr.
func (m *Manager) LastWords() string {
	f, err := os.Open(m.cfg.LogFile)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err == nil && st.Size() > tailSize {
		_, _ = f.Seek(-tailSize, io.SeekEnd)
	}
	tail, err := io.ReadAll(io.LimitReader(f, tailSize))
	if err != nil {
		return ""
	}
	return lastWords(tail)
}

func lastWords(log []byte) (words string) {
	for b := range bytes.Lines(log) {
		line := strings.TrimSpace(string(b))
		_, said, logged := strings.Cut(line, "LOG:  ")
		switch {
		case strings.Contains(line, "LOG:  starting PostgreSQL"):
			words = ""
		case logged && strings.Contains(said, " was terminated by signal "):
			words = said
			if strings.Contains(said, "signal 9") {
				words += " (by the kernel, when memory was short? 'dmesg' or 'journalctl -k' tells)"
			}
		case strings.Contains(line, "PANIC:  "):
			_, words, _ = strings.Cut(line, "PANIC:  ")
		}
	}
	return words
}
