package api

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/admin/admintest"
	"matriarch/internal/agent"
	"matriarch/internal/obs"
)

type source struct{ st admin.Status }

func (s source) Status(context.Context) admin.Status { return s.st }

func server(st admin.Status) *Server {
	return New(Config{Source: source{st}, Metrics: obs.NewMetrics("scope", st.Name, "test"), Log: slog.New(slog.DiscardHandler)})
}

func get(t *testing.T, st admin.Status, method, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	s := New(Config{Source: source{st}, Log: slog.New(slog.DiscardHandler)})
	if target == "/metrics" { // a registry costs more than all the rest
		s = server(st)
	}
	s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, target, nil))
	return w
}

// with changes a sample.
func with(id fsm.NodeID, change func(*admin.Status)) admin.Status {
	st := admintest.Status(id)
	change(&st)
	return st
}

func group(st *admin.Status, id fsm.GroupID, change func(*fsm.Group)) {
	g := st.State.Groups[id]
	change(&g)
	st.State.Groups[id] = g
}

// situations are nodes in every role that matters to a health check.
func situations() map[string]admin.Status {
	return map[string]admin.Status{
		"primary": admintest.Status(admintest.Coord1),
		"quorum":  admintest.Status(admintest.Coord2),
		"async":   admintest.Status(admintest.Coord3), // tagged noloadbalance
		"async, balanced": with(admintest.Coord3, func(st *admin.Status) {
			n := st.State.Nodes[admintest.Coord3]
			n.Tags.NoLoadBalance = false
			st.State.Nodes[n.ID] = n
		}),
		"granted, not open": with(admintest.Coord1, func(st *admin.Status) { group(st, 0, func(g *fsm.Group) { g.Sync.Confirmed = fsm.Epoch{} }) }),
		"lease over":        with(admintest.Coord1, func(st *admin.Status) { st.Self.LeaseLeft = 0 }),
		"revoked":           with(admintest.Coord1, func(st *admin.Status) { group(st, 0, func(g *fsm.Group) { g.Lease.Revoked = true }) }),
		"old primary": with(admintest.Coord1, func(st *admin.Status) {
			group(st, 0, func(g *fsm.Group) {
				g.Lease.Holder, g.Epoch, g.Sync.Confirmed = admintest.Coord2, fsm.Epoch{Inc: 1, N: 3}, fsm.Epoch{Inc: 1, N: 3}
			})
		}),
		"other epoch":  with(admintest.Coord1, func(st *admin.Status) { st.Self.Epoch.N-- }),
		"primary dead": with(admintest.Coord1, func(st *admin.Status) { st.Self.Postgres.Reachable, st.Self.Postmaster = false, 0 }),
		"loop stuck":   with(admintest.Coord2, func(st *admin.Status) { st.Self.Age = 11 * time.Second }),
		"no loop yet":  with(admintest.Coord2, func(st *admin.Status) { st.Self = nil }),
		"no state yet": {Node: "x", Name: "x", At: admintest.Now, State: fsm.NewState()},
		"not streaming": with(admintest.Coord2, func(st *admin.Status) {
			st.Self.Postgres.Streaming = false
			st.Self.Report.State = "running"
		}),
	}
}

func TestHealthChecks(t *testing.T) {
	primaryPaths := []string{"/", "/primary", "/read-write", "/master"}
	always := []string{"/patroni", "/failsafe", "/cluster", "/history", "/config", "/metrics"}
	alive := append([]string{"/health", "/liveness"}, always...)
	want := map[string][]string{ // what answers 200; everything else answers 503
		"primary":           slices.Concat(primaryPaths, alive, []string{"/leader", "/read-only", "/read-only-sync", "/read-only-quorum", "/readiness"}),
		"quorum":            slices.Concat(alive, []string{"/replica", "/read-only", "/quorum", "/synchronous", "/sync", "/read-only-quorum", "/read-only-sync", "/readiness"}),
		"async":             alive, // 16 MiB behind
		"async, balanced":   slices.Concat(alive, []string{"/replica", "/read-only", "/asynchronous", "/async"}),
		"granted, not open": slices.Concat(alive, []string{"/leader"}),
		"lease over":        alive,
		"revoked":           slices.Concat(alive, []string{"/leader"}),
		"old primary":       alive,
		"other epoch":       slices.Concat(alive, []string{"/leader"}),
		"primary dead":      slices.Concat(always, []string{"/leader", "/liveness"}),
		"loop stuck":        slices.Concat(always, []string{"/health", "/replica", "/read-only", "/quorum", "/synchronous", "/sync", "/read-only-quorum", "/read-only-sync", "/readiness"}),
		"no loop yet":       always,
		"no state yet":      {"/patroni", "/failsafe", "/metrics"},
		"not streaming":     slices.Concat(alive, []string{"/replica", "/read-only", "/quorum", "/synchronous", "/sync", "/read-only-quorum", "/read-only-sync"}),
	}
	paths := always
	for path := range checks() {
		paths = append(paths, path)
	}
	sits := situations()
	if len(sits) != len(want) {
		t.Fatalf("%d situations, %d expectations", len(sits), len(want))
	}
	for name, st := range sits {
		for _, path := range paths {
			code := http.StatusServiceUnavailable
			if slices.Contains(want[name], path) {
				code = http.StatusOK
			}
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions} {
				if w := get(t, st, method, path); w.Code != code {
					t.Errorf("%s: %s %s answered %d, want %d", name, method, path, w.Code, code)
				}
			}
		}
	}
}

func TestQueries(t *testing.T) {
	balanced := situations()["async, balanced"]
	for _, c := range []struct {
		st     admin.Status
		target string
		want   int
	}{
		{balanced, "/replica?lag=100", 503},
		{balanced, "/replica?lag=100MB", 200},
		{balanced, "/replica?lag=16MB", 200},
		{balanced, "/replica?lag=1kB", 503},
		{balanced, "/replica?lag=much", 400},
		{balanced, "/replica?replication_state=streaming", 200},
		{situations()["not streaming"], "/replica?replication_state=streaming", 503},
		{balanced, "/replica?tag_disk=hdd", 200},
		{balanced, "/replica?tag_disk=ssd", 503},
		{balanced, "/replica?tag_nosync=true", 200},
		{balanced, "/replica?tag_clonefrom=true", 503},
		{balanced, "/readiness", 503},
		{balanced, "/readiness?lag=100MB", 200},
		{balanced, "/readiness?lag=100MB&mode=write", 200},
		{balanced, "/readiness?mode=read", 400},
		{admintest.Status(admintest.Coord1), "/primary?lag=rubbish&tag_x=y", 200}, // filters are for standbys
	} {
		if w := get(t, c.st, http.MethodGet, c.target); w.Code != c.want {
			t.Errorf("%s answered %d, want %d: %s", c.target, w.Code, c.want, w.Body)
		}
	}
}

func TestQuorumOfTwoIsNotSynchronous(t *testing.T) {
	st := with(admintest.Coord2, func(st *admin.Status) {
		group(st, 0, func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{fsm.NewPair(1, admintest.Coord2, admintest.Coord3)} })
	})
	for path, want := range map[string]int{"/quorum": 200, "/synchronous": 503} {
		if w := get(t, st, http.MethodGet, path); w.Code != want {
			t.Errorf("%s answered %d, want %d", path, w.Code, want)
		}
	}
}

func TestNothingIsWritten(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		for _, path := range []string{"/", "/primary", "/config", "/switchover", "/restart", "/metrics"} {
			w := get(t, admintest.Status(admintest.Coord1), method, path)
			if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") == "" {
				t.Errorf("%s %s answered %d", method, path, w.Code)
			}
			var e apiError
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Error.Code != "read_only" || e.Error.Hint == "" {
				t.Errorf("%s %s: %v %s", method, path, err, w.Body)
			}
		}
	}
	if w := get(t, admintest.Status(admintest.Coord1), http.MethodGet, "/nothing"); w.Code != http.StatusNotFound {
		t.Errorf("unknown path answered %d", w.Code)
	}
	if w := get(t, admintest.Status(admintest.Coord1), http.MethodOptions, "/primary"); w.Body.Len() != 0 {
		t.Errorf("OPTIONS has a body: %s", w.Body)
	}
}

func body(t *testing.T, st admin.Status, path string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(get(t, st, http.MethodGet, path).Body.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPatroniBody(t *testing.T) {
	raft := map[string]any{"leader": "coord-1", "term": 3.0, "state": "leader", "applied": 42.0}
	info := func(name string) map[string]any {
		return map[string]any{"version": "4.1.4", "scope": "0aaaaaaa-0000-4000-8000-000000000001", "name": name}
	}
	want := map[string]any{
		"state": "running", "role": "primary", "server_version": 150020.0, "postmaster_start_time": "2026-03-01 10:00:00.000000+00:00", "xlog": map[string]any{"location": 50331744.0},
		"timeline": 2.0, "replication": []any{map[string]any{"application_name": "coord-2", "state": "streaming", "sync_state": "quorum", "lag": 0.0}},
		"dcs_last_seen": 1772366400.0, "database_system_identifier": "7300000000000000001", "patroni": info("coord-1"), "group": 0.0, "epoch": "1.2", "lease_remaining_ms": 4200.0,
		"rule": "R300 primary", "reason": "writable under epoch 1.2, 4.2s of the lease left", "raft": raft,
	}
	if diff := cmp.Diff(want, body(t, admintest.Status(admintest.Coord1), "/patroni")); diff != "" {
		t.Error(diff)
	}
	raft = map[string]any{"leader": "coord-1", "term": 3.0, "state": "follower", "applied": 42.0}
	want = map[string]any{
		"state": "running", "role": "replica", "server_version": 150020.0, "postmaster_start_time": "2026-03-01 10:00:00.000000+00:00",
		"xlog":     map[string]any{"received_location": 50331744.0, "replayed_location": 50331744.0, "paused": false},
		"timeline": 2.0, "replication_state": "streaming", "sync_standby": true, "quorum_standby": true, "tags": map[string]any{"failover_priority": 5.0},
		"dcs_last_seen": 1772366399.0, "database_system_identifier": "7300000000000000001", "patroni": info("coord-2"), "group": 0.0, "epoch": "1.2", "lease_remaining_ms": 0.0,
		"rule": "R400 follows", "reason": "streams from the primary, 0 bytes behind", "raft": raft,
	}
	if diff := cmp.Diff(want, body(t, admintest.Status(admintest.Coord2), "/patroni")); diff != "" {
		t.Error(diff)
	}
}

func TestClusterBody(t *testing.T) {
	members := body(t, admintest.Status(admintest.Coord1), "/cluster").(map[string]any)["members"].([]any)
	var names []string
	rows := map[string]map[string]any{}
	for _, m := range members {
		row := m.(map[string]any)
		names = append(names, row["name"].(string))
		rows[row["name"].(string)] = row
	}
	if !slices.IsSorted(names) || len(names) != 5 {
		t.Errorf("members %v", names)
	}
	want := map[string]any{
		"name": "coord-1", "role": "leader", "state": "running", "api_url": "http://10.0.0.1:8008/patroni", "host": "10.0.0.1", "port": 5432.0, "timeline": 2.0, "lsn": "0/3000060",
		"group": 0.0, "epoch": "1.2",
	}
	if diff := cmp.Diff(want, rows["coord-1"]); diff != "" {
		t.Error(diff)
	}
	want = map[string]any{
		"name": "coord-3", "role": "replica", "state": "streaming", "api_url": "http://10.0.0.3:8008/patroni", "host": "10.0.0.3", "port": 5432.0, "timeline": 2.0, "group": 0.0,
		"tags":        map[string]any{"nosync": true, "noloadbalance": true, "disk": "hdd"},
		"receive_lsn": "0/2000060", "receive_lag": 16777216.0, "replay_lsn": "0/2000060", "replay_lag": 16777216.0, "lsn": "0/2000060", "lag": 16777216.0,
	}
	if diff := cmp.Diff(want, rows["coord-3"]); diff != "" {
		t.Error(diff)
	}
	if rows["coord-2"]["role"] != "sync_standby" || rows["work1-2"]["role"] != "leader" {
		t.Errorf("roles: %v, %v", rows["coord-2"]["role"], rows["work1-2"]["role"])
	}
}

func TestHistoryAndConfig(t *testing.T) {
	want := []any{[]any{1.0, 33554432.0, "no recovery target specified", "2026-03-01T11:00:00Z", "work1-2"}}
	if diff := cmp.Diff(want, body(t, admintest.Status(admintest.Work1), "/history")); diff != "" {
		t.Error(diff)
	}
	conf := body(t, admintest.Status(admintest.Coord2), "/config").(map[string]any)
	if conf["ttl"] != 5.0 || conf["synchronous_mode"] != "quorum" || conf["matriarch"].(map[string]any)["degrade_after"] != "2s" {
		t.Errorf("%v", conf)
	}
}

func TestMetricsAreOfNow(t *testing.T) {
	text := get(t, admintest.Status(admintest.Coord1), http.MethodGet, "/metrics").Body.String()
	for _, want := range []string{
		`patroni_primary{name="coord-1",scope="scope"} 1`, `patroni_replica{name="coord-1",scope="scope"} 0`, `matriarch_raft_leader{name="coord-1",scope="scope"} 1`,
		`matriarch_lease_remaining_seconds{name="coord-1",scope="scope"} 4.2`, `patroni_postgres_timeline{name="coord-1",scope="scope"} 2`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	withSlot := admintest.Status(admintest.Coord1)
	withSlot.Self.Slots = []agent.SlotSeen{{Name: "cdc", Type: fsm.Logical, Active: true, WALStatus: "lost", Retained: 7}}
	text = get(t, withSlot, http.MethodGet, "/metrics").Body.String()
	for _, want := range []string{`slot_active{name="coord-1",scope="scope",slot="cdc",type="logical"} 1`, `slot_lost{name="coord-1",scope="scope",slot="cdc",type="logical"} 1`, `slot_retained_bytes{name="coord-1",scope="scope",slot="cdc",type="logical"} 7`} {
		if !strings.Contains(text, "matriarch_replication_"+want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	text = get(t, situations()["granted, not open"], http.MethodGet, "/metrics").Body.String()
	if !strings.Contains(text, `patroni_primary{name="coord-1",scope="scope"} 0`) {
		t.Error("a primary that is not open yet counts as one")
	}
}

func TestNoSecretLeaks(t *testing.T) {
	for _, path := range []string{"/patroni", "/failsafe", "/cluster", "/history", "/config", "/metrics"} {
		if text := get(t, admintest.Status(admintest.Coord1), http.MethodGet, path).Body.String(); strings.Contains(text, "hash-of-a-secret") {
			t.Errorf("%s shows the hash of a token", path)
		}
	}
}

func TestServeAndClose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := server(admintest.Status(admintest.Coord1))
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	res, err := http.Get("http://" + l.Addr().String() + "/health")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("status %d", res.StatusCode)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestMetricsOfTheFormation(t *testing.T) {
	leader := with(admintest.Coord1, func(st *admin.Status) {
		st.Heard[admintest.Coord3] = 12 * time.Second
		delete(st.Heard, admintest.Work1)
		st.Metadata.Synced = false
		group(st, 1, func(g *fsm.Group) { g.Paused, g.Lease.Holder = true, "" })
	})
	text := get(t, leader, http.MethodGet, "/metrics").Body.String()
	for _, want := range []string{
		`matriarch_group_primary{group="0",name="coord-1",scope="scope"} 1`, `matriarch_group_primary{group="1",name="coord-1",scope="scope"} 0`,
		`matriarch_group_paused{group="1",name="coord-1",scope="scope"} 1`, `matriarch_member_silent_seconds{group="0",member="coord-3",name="coord-1",scope="scope"} 12`,
		`matriarch_member_silent_seconds{group="1",member="work1-1",name="coord-1",scope="scope"} +Inf`,
		`matriarch_member_lag_bytes{group="0",member="coord-2"`, `matriarch_citus_metadata_right{name="coord-1",scope="scope"} 0`, `matriarch_formation_healthy{name="coord-1",scope="scope"} 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if text := get(t, admintest.Status(admintest.Coord2), http.MethodGet, "/metrics").Body.String(); strings.Contains(text, "matriarch_group_") {
		t.Error("a node that does not lead speaks for the groups")
	}
}
