package consensus

import (
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// repeatAfter is how long the same line of the libraries stays at debug level: a dead peer would fill the log.
const repeatAfter = time.Minute

// libLog lets the Raft library log through slog: its news at debug level, since leadership.go tells what matters, its complaints
// as warnings, each at most once a minute.
type libLog struct {
	log  *slog.Logger
	name string
	with []any
	said *said
}

func newLibLog(l *slog.Logger, name string) *libLog {
	return &libLog{log: l.With("library", name), name: name, said: &said{at: map[string]time.Time{}}}
}

// said remembers when a line was last logged.
type said struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (s *said) recently(line string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if t, ok := s.at[line]; ok && now.Sub(t) < repeatAfter {
		return true
	}
	maps.DeleteFunc(s.at, func(_ string, t time.Time) bool { return now.Sub(t) >= repeatAfter })
	s.at[line] = now
	return false
}

// Log implements hclog.Logger.
func (l *libLog) Log(level hclog.Level, msg string, args ...any) {
	args = plain(slices.Concat(l.with, args))
	if level >= hclog.Warn && !l.said.recently(msg) {
		l.log.Warn(msg, args...) //nolint:sloglint // the library's message
		return
	}
	l.log.Debug(msg, args...) //nolint:sloglint // the library's message
}

var keys = strings.NewReplacer("-", "_", " ", "_")

// plain turns hclog's own value types into text and its keys into ours.
func plain(args []any) []any {
	for i, a := range args {
		switch v := a.(type) {
		case hclog.Format:
			args[i] = fmt.Sprintf(v[0].(string), v[1:]...)
		case string:
			if i%2 == 0 {
				args[i] = keys.Replace(v)
			}
		case fmt.Stringer:
			args[i] = v.String()
		}
	}
	return args
}

// Trace implements hclog.Logger.
func (l *libLog) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }

// Debug implements hclog.Logger.
func (l *libLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }

// Info implements hclog.Logger.
func (l *libLog) Info(msg string, args ...any) { l.Log(hclog.Info, msg, args...) }

// Warn implements hclog.Logger.
func (l *libLog) Warn(msg string, args ...any) { l.Log(hclog.Warn, msg, args...) }

// Error implements hclog.Logger.
func (l *libLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

// IsTrace implements hclog.Logger.
func (l *libLog) IsTrace() bool { return false }

// IsDebug implements hclog.Logger.
func (l *libLog) IsDebug() bool { return true }

// IsInfo implements hclog.Logger.
func (l *libLog) IsInfo() bool { return true }

// IsWarn implements hclog.Logger.
func (l *libLog) IsWarn() bool { return true }

// IsError implements hclog.Logger.
func (l *libLog) IsError() bool { return true }

// ImpliedArgs implements hclog.Logger.
func (l *libLog) ImpliedArgs() []any { return l.with }

// With implements hclog.Logger.
func (l *libLog) With(args ...any) hclog.Logger {
	c := *l
	c.with = slices.Concat(l.with, args)
	return &c
}

// Name implements hclog.Logger.
func (l *libLog) Name() string { return l.name }

// Named implements hclog.Logger.
func (l *libLog) Named(string) hclog.Logger { return l }

// ResetNamed implements hclog.Logger.
func (l *libLog) ResetNamed(string) hclog.Logger { return l }

// SetLevel implements hclog.Logger: slog's handler decides.
func (l *libLog) SetLevel(hclog.Level) {}

// GetLevel implements hclog.Logger.
func (l *libLog) GetLevel() hclog.Level { return hclog.Debug }

// StandardLogger implements hclog.Logger.
func (l *libLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.log.Handler(), slog.LevelDebug)
}

// StandardWriter implements hclog.Logger.
func (l *libLog) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
