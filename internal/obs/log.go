package obs

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/term"
)

// LogOptions are the settings of the log as the configuration file spells them.
type LogOptions struct {
	Level  string // debug, info, warn or error
	Format string // auto, json or text; auto is text on a terminal, else JSON
}

// NewLogger returns a logger that writes to w, and the level, which may be changed while it runs. An unknown level or format is an error.
func NewLogger(w io.Writer, o LogOptions) (*slog.Logger, *slog.LevelVar, error) {
	level := new(slog.LevelVar)
	switch o.Level {
	case "debug", "info", "warn", "error":
		if err := level.UnmarshalText([]byte(o.Level)); err != nil {
			return nil, nil, fmt.Errorf("set up log: %w", err)
		}
	default:
		return nil, nil, fmt.Errorf("set up log: level %q must be one of debug, info, warn, error", o.Level)
	}
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: lowerLevel}
	switch {
	case o.Format == "json" || (o.Format == "auto" && !isTerminal(w)):
		return slog.New(slog.NewJSONHandler(w, options)), level, nil
	case o.Format == "text" || o.Format == "auto":
		return slog.New(slog.NewTextHandler(w, options)), level, nil
	default:
		return nil, nil, fmt.Errorf("set up log: format %q must be one of auto, json, text", o.Format)
	}
}

// lowerLevel writes levels as the configuration file spells them.
func lowerLevel(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.LevelKey {
		return slog.String(a.Key, strings.ToLower(a.Value.String()))
	}
	return a
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
