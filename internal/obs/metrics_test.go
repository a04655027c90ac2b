package obs

import (
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
)

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// value returns the value of one series as the text format writes it, "" if it is not there.
func value(t *testing.T, m *Metrics, series string) string {
	t.Helper()
	for line := range strings.Lines(scrape(t, m)) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func TestMatriarchSeries(t *testing.T) {
	m := NewMetrics("c", "n1", "1.2.3")
	m.Raft(true, 7, 1234)
	m.Election()
	m.Lease(fsm.Epoch{Inc: 2, N: 17}, 3500*time.Millisecond)
	m.Tick(7 * time.Millisecond)
	m.Tick(3 * time.Second)
	m.Decision("R110")
	m.Decision("R110")
	m.Failover(0)
	const own = `{name="n1",scope="c"}`
	for series, want := range map[string]string{
		"matriarch_raft_leader" + own:                                            "1",
		"matriarch_raft_term" + own:                                              "7",
		"matriarch_raft_applied_index" + own:                                     "1234",
		"matriarch_elections_total" + own:                                        "1",
		"matriarch_lease_remaining_seconds" + own:                                "3.5",
		"matriarch_lease_incarnation" + own:                                      "2",
		"matriarch_lease_epoch" + own:                                            "17",
		`matriarch_tick_duration_seconds_bucket{name="n1",scope="c",le="0.005"}`: "0",
		`matriarch_tick_duration_seconds_bucket{name="n1",scope="c",le="0.01"}`:  "1",
		`matriarch_tick_duration_seconds_bucket{name="n1",scope="c",le="+Inf"}`:  "2",
		`matriarch_rule_decisions_total{name="n1",rule="R110",scope="c"}`:        "2",
		`matriarch_failovers_total{group="0",name="n1",scope="c"}`:               "1",
		`matriarch_build_info{name="n1",scope="c",version="1.2.3"}`:              "1",
	} {
		if got := value(t, m, series); got != want {
			t.Errorf("%s = %q, want %q", series, got, want)
		}
	}
}

func TestLeaseMetricsOfNoLease(t *testing.T) {
	for name, tc := range map[string]struct {
		epoch     fsm.Epoch
		remaining time.Duration
	}{
		"run out": {fsm.Epoch{Inc: 1, N: 1}, -time.Second},
		"none":    {fsm.Epoch{}, time.Second},
	} {
		m := NewMetrics("c", "n1", "v")
		m.Lease(fsm.Epoch{Inc: 1, N: 1}, time.Second)
		m.Lease(tc.epoch, tc.remaining)
		if got := value(t, m, `matriarch_lease_remaining_seconds{name="n1",scope="c"}`); got != "0" {
			t.Errorf("%s: remaining %s, want 0", name, got)
		}
	}
}

// patroniTypes are Patroni's 23 series with their types; its dashboards depend on both.
var patroniTypes = map[string]string{
	"patroni_version": "gauge", "patroni_postgres_running": "gauge", "patroni_postmaster_start_time": "gauge", "patroni_primary": "gauge",
	"patroni_xlog_location": "counter", "patroni_standby_leader": "gauge", "patroni_replica": "gauge", "patroni_sync_standby": "gauge",
	"patroni_quorum_standby": "gauge", "patroni_xlog_received_location": "counter", "patroni_xlog_replayed_location": "counter",
	"patroni_xlog_replayed_timestamp": "gauge", "patroni_xlog_paused": "gauge", "patroni_postgres_streaming": "gauge",
	"patroni_postgres_in_archive_recovery": "gauge", "patroni_postgres_server_version": "gauge", "patroni_cluster_unlocked": "gauge",
	"patroni_failsafe_mode_is_active": "gauge", "patroni_postgres_timeline": "counter", "patroni_dcs_last_seen": "gauge",
	"patroni_pending_restart": "gauge", "patroni_is_paused": "gauge", "patroni_postgres_state": "gauge",
}

func TestPatroniSeries(t *testing.T) {
	m := NewMetrics("c", "n1", "v")
	if strings.Contains(scrape(t, m), "patroni_") {
		t.Error("series before the first observation")
	}
	// Each value is unlike the others of its type, so that a mixed-up pair shows.
	m.Patroni(Patroni{
		Version: 40104, PostgresRunning: true, PostmasterStart: time.Unix(1000, 500_000_000), Primary: true, SyncStandby: true,
		Location: 11, ReceivedLocation: 12, ReplayedLocation: 13, ReplayedTime: time.Unix(2000, 0), Streaming: true, ServerVersion: 150020,
		ClusterUnlocked: true, Timeline: 4, ConsensusSeen: time.Unix(3000, 0), PendingRestart: true, State: StateCrashed,
	})
	want := map[string]string{
		"patroni_version": "40104", "patroni_postgres_running": "1", "patroni_postmaster_start_time": "1000.5", "patroni_primary": "1",
		"patroni_xlog_location": "11", "patroni_standby_leader": "0", "patroni_replica": "0", "patroni_sync_standby": "1",
		"patroni_quorum_standby": "0", "patroni_xlog_received_location": "12", "patroni_xlog_replayed_location": "13",
		"patroni_xlog_replayed_timestamp": "2000", "patroni_xlog_paused": "0", "patroni_postgres_streaming": "1",
		"patroni_postgres_in_archive_recovery": "0", "patroni_postgres_server_version": "150020", "patroni_cluster_unlocked": "1",
		"patroni_failsafe_mode_is_active": "0", "patroni_postgres_timeline": "4", "patroni_dcs_last_seen": "3000",
		"patroni_pending_restart": "1", "patroni_is_paused": "0", "patroni_postgres_state": "14",
	}
	got, types := map[string]string{}, map[string]string{}
	for _, match := range regexp.MustCompile(`(?m)^(patroni_\w+)\{name="n1",scope="c"\} (\S+)$`).FindAllStringSubmatch(scrape(t, m), -1) {
		got[match[1]] = match[2]
	}
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (patroni_\w+) (\w+)$`).FindAllStringSubmatch(scrape(t, m), -1) {
		types[match[1]] = match[2]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(patroniTypes, types); diff != "" {
		t.Errorf("types (-want +got):\n%s", diff)
	}
}

// TestPatroniFlags turns each boolean on alone: exactly its own series becomes 1.
func TestPatroniFlags(t *testing.T) {
	for name, p := range map[string]Patroni{
		"patroni_postgres_running":             {PostgresRunning: true},
		"patroni_primary":                      {Primary: true},
		"patroni_standby_leader":               {StandbyLeader: true},
		"patroni_replica":                      {Replica: true},
		"patroni_sync_standby":                 {SyncStandby: true},
		"patroni_quorum_standby":               {QuorumStandby: true},
		"patroni_xlog_paused":                  {ReplayPaused: true},
		"patroni_postgres_streaming":           {Streaming: true},
		"patroni_postgres_in_archive_recovery": {InArchiveRecovery: true},
		"patroni_cluster_unlocked":             {ClusterUnlocked: true},
		"patroni_failsafe_mode_is_active":      {FailsafeActive: true},
		"patroni_pending_restart":              {PendingRestart: true},
		"patroni_is_paused":                    {Paused: true},
	} {
		m := NewMetrics("c", "n1", "v")
		m.Patroni(p)
		var on []string
		for _, match := range regexp.MustCompile(`(?m)^(patroni_\w+)\{.*\} 1$`).FindAllStringSubmatch(scrape(t, m), -1) {
			on = append(on, match[1])
		}
		if !slices.Equal(on, []string{name}) {
			t.Errorf("%s: series that are 1: %v", name, on)
		}
	}
}

func TestPostgresStateNumbers(t *testing.T) {
	for state, want := range map[PostgresState]string{
		0: "initializing new cluster", 4: "creating replica", 5: "running", 6: "starting", 8: "start failed", 11: "stopping", 12: "stopped",
		14: "crashed", 15: "unknown", -1: "unknown",
	} {
		if got := state.String(); got != want {
			t.Errorf("state %d is %q, want %q", int(state), got, want)
		}
	}
	if StateRunning != 5 || StateStarting != 6 || StateStopped != 12 || StateCrashed != 14 {
		t.Error("the numbers are not Patroni's")
	}
}
