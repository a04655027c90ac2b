package fence

import (
	"io"
	"os"
)

// lateWriter hands lines to a goroutine and never waits: a log on a hung or full disk must not keep the sentinel from fencing. Lines that do
// not fit in the queue are dropped. The file is opened for each batch, so that it may be rotated away.
type lateWriter struct {
	lines chan []byte
	done  chan struct{}
}

func newLateWriter(file string) *lateWriter {
	w := &lateWriter{lines: make(chan []byte, 256), done: make(chan struct{})}
	go w.run(file)
	return w
}

// Write queues one line.
func (w *lateWriter) Write(b []byte) (int, error) {
	select {
	case w.lines <- append([]byte(nil), b...):
	default:
	}
	return len(b), nil
}

func (w *lateWriter) run(file string) {
	defer close(w.done)
	for line := range w.lines {
		out := io.WriteCloser(os.Stderr)
		if file != "" {
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
			if err == nil {
				out = f
			}
		}
		_, _ = out.Write(line)
		for more := len(w.lines); more > 0; more-- {
			_, _ = out.Write(<-w.lines)
		}
		if out != os.Stderr {
			_ = out.Close()
		}
	}
}
