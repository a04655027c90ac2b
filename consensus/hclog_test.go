package consensus

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// The library's news stay at debug level; the same complaint is a warning once a minute.
func TestLibraryLog(t *testing.T) {
	bubble(t, func(t *testing.T, _ *harness) {
		var out bytes.Buffer
		var l hclog.Logger = newLibLog(slog.New(slog.NewTextHandler(&out, nil)), "raft")
		l.Info("entering follower state")
		for range 5 {
			l.With("peer-id", "b").Error("failed to heartbeat", "backoff time", hclog.Fmt("%d ms", 5))
		}
		l.Warn("something else")
		if n := strings.Count(out.String(), "\n"); n != 2 || strings.Contains(out.String(), "entering") {
			t.Errorf("logged:\n%s", &out)
		}
		if !strings.Contains(out.String(), "peer_id=b") || !strings.Contains(out.String(), "5 ms") {
			t.Errorf("arguments are lost:\n%s", &out)
		}
		time.Sleep(repeatAfter)
		l.Error("failed to heartbeat")
		if n := strings.Count(out.String(), "\n"); n != 3 {
			t.Errorf("a minute later:\n%s", &out)
		}
	})
}
