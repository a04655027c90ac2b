package obs

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func TestNewLogger(t *testing.T) {
	for name, tc := range map[string]struct {
		options LogOptions
		json    bool
	}{
		"auto away from a terminal": {LogOptions{"info", "auto"}, true},
		"json":                      {LogOptions{"debug", "json"}, true},
		"text":                      {LogOptions{"warn", "text"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			log, _, err := NewLogger(&b, tc.options)
			if err != nil {
				t.Fatal(err)
			}
			log.Warn("disk is slow", "node", "n1")
			var line map[string]any
			isJSON := json.Unmarshal(b.Bytes(), &line) == nil
			if isJSON != tc.json {
				t.Fatalf("JSON %v, want %v: %s", isJSON, tc.json, b.String())
			}
			if tc.json && (line["level"] != "warn" || line["msg"] != "disk is slow" || line["node"] != "n1") {
				t.Errorf("got %s", b.String())
			}
			if !tc.json && !strings.Contains(b.String(), `level=warn msg="disk is slow" node=n1`) {
				t.Errorf("got %s", b.String())
			}
		})
	}
}

func TestLevelChangesWhileRunning(t *testing.T) {
	var b bytes.Buffer
	log, level, err := NewLogger(&b, LogOptions{"error", "text"})
	if err != nil {
		t.Fatal(err)
	}
	log.Warn("hidden")
	if err := level.UnmarshalText([]byte("debug")); err != nil {
		t.Fatal(err)
	}
	log.Debug("shown")
	if got := b.String(); strings.Contains(got, "hidden") || !strings.Contains(got, "shown") {
		t.Errorf("got %s", got)
	}
}

func TestNewLoggerRefuses(t *testing.T) {
	for _, o := range []LogOptions{{"", "json"}, {"trace", "json"}, {"INFO", "json"}, {"info+1", "json"}, {"info", ""}, {"info", "xml"}} {
		if _, _, err := NewLogger(os.Stderr, o); err == nil || !strings.HasPrefix(err.Error(), "set up log: ") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
