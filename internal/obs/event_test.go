package obs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
)

func newEvents(w io.Writer, keep int) *Events {
	return NewEvents(slog.New(slog.NewJSONHandler(w, nil)), NewMetrics("c", "n1", "test"), keep)
}

func TestEmitLogs(t *testing.T) {
	for name, tc := range map[string]struct {
		event Event
		want  map[string]any
	}{
		"everything": {
			Event{Kind: Fenced, Node: "n1", Group: 2, Epoch: fsm.Epoch{Inc: 1, N: 17}, Rule: "R110", Message: "lease lost 0.2 s ago"},
			map[string]any{"level": "WARN", "msg": "lease lost 0.2 s ago", "event": "fenced", "node": "n1", "group": 2.0, "epoch": "1.17", "rule": "R110"},
		},
		"the coordinator is a group": {
			Event{Kind: Promoted, Message: "m"}, map[string]any{"level": "INFO", "msg": "m", "event": "promoted", "group": 0.0},
		},
		"no group": {
			Event{Kind: LeaderChanged, Group: NoGroup, Message: "m"}, map[string]any{"level": "INFO", "msg": "m", "event": "leader_changed"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			newEvents(&b, 1).Emit(t.Context(), tc.event)
			var got map[string]any
			if err := json.Unmarshal(b.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			delete(got, "time")
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestEmitStampsTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEvents(io.Discard, 2)
		given := time.Unix(1, 0)
		e.Emit(t.Context(), Event{Kind: Granted, Time: given})
		e.Emit(t.Context(), Event{Kind: Granted})
		got := e.Recent()
		if !got[0].Time.Equal(given) || !got[1].Time.Equal(time.Now()) {
			t.Errorf("times %v and %v", got[0].Time, got[1].Time)
		}
	})
}

func TestRecentKeepsTheLast(t *testing.T) {
	for keep := range 5 {
		for emitted := range 12 {
			e := newEvents(io.Discard, keep)
			for i := range emitted {
				e.Emit(t.Context(), Event{Kind: Granted, Message: fmt.Sprint(i)})
			}
			want := []string{}
			for i := max(0, emitted-max(keep, 1)); i < emitted; i++ {
				want = append(want, fmt.Sprint(i))
			}
			got := []string{}
			for _, ev := range e.Recent() {
				got = append(got, ev.Message)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("keep %d, emitted %d (-want +got):\n%s", keep, emitted, diff)
			}
		}
	}
}

// TestEmitTogether is for the race detector.
func TestEmitTogether(t *testing.T) {
	e := newEvents(io.Discard, 3)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				e.Emit(t.Context(), Event{Kind: Promoted})
				e.Recent()
			}
		})
	}
	wg.Wait()
	if got := value(t, e.metrics, `matriarch_events_total{kind="promoted",name="n1",scope="c"}`); got != "400" {
		t.Errorf("counted %s events, want 400", got)
	}
}

func TestEventJSON(t *testing.T) {
	got, err := json.Marshal(Event{
		Time: time.Unix(0, 0).UTC(), Kind: FailoverDone, Node: "n2", Group: 1, Epoch: fsm.Epoch{Inc: 1, N: 3}, Rule: "C200", Message: "n1 gone for 5.1 s",
	})
	want := `{"time":"1970-01-01T00:00:00Z","kind":"failover","node":"n2","group":1,"epoch":{"inc":1,"n":3},"rule":"C200","message":"n1 gone for 5.1 s"}`
	if err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
}
