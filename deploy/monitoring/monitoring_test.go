package monitoring

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/internal/admin"
	"matriarch/internal/admin/admintest"
	"matriarch/internal/api"
	"matriarch/internal/obs"
)

// followed says which end-to-end test goes through what the alert's runbook tells.
var followed = map[string]string{
	"MatriarchNodeDown":           "TestAgent",
	"MatriarchNodeSilent":         "TestFailover",
	"MatriarchNoLeader":           "TestMajority",
	"MatriarchNoPrimary":          "TestOneStandbyIsNotEnough",
	"MatriarchCommitsWait":        "TestMonitoring",
	"MatriarchPrimaryChanged":     "TestFailover",
	"MatriarchPrimaryFlaps":       "TestRunbooks",
	"MatriarchDegraded":           "TestMonitoring",
	"MatriarchNotStreaming":       "TestReinit",
	"MatriarchServerDown":         "TestColdStart",
	"MatriarchLag":                "TestRunbooks",
	"MatriarchSlowTick":           "TestRunbooks",
	"MatriarchLeaseShort":         "TestRunbooks",
	"MatriarchCitusMetadata":      "TestCitus",
	"MatriarchCertificateExpires": "TestRunbooks",
	"MatriarchPaused":             "TestMonitoring",
	"MatriarchSetAside":           "TestDiverged",
	"MatriarchWeakFence":          "TestAdoptRunning",
	"MatriarchRestartPending":     "TestSwitchover",
	"MatriarchClientsWait":        "TestProxy",
}

func TestEveryAlertHasARunbookThatWasFollowed(t *testing.T) {
	alerts := mustAlerts(t)
	e2e := endToEnd(t)
	seen := map[string]bool{}
	for _, a := range alerts {
		if seen[a.Name] {
			t.Errorf("%s is there twice", a.Name)
		}
		seen[a.Name] = true
		if !slices.Contains([]string{"page", "ticket"}, a.Labels["severity"]) || a.Annotations["summary"] == "" || a.Annotations["description"] == "" {
			t.Errorf("%s: severity %q, annotations %v", a.Name, a.Labels["severity"], a.Annotations)
		}
		book := a.Annotations["runbook"]
		text, err := os.ReadFile(filepath.Join("..", "..", book))
		if err != nil || !strings.HasPrefix(book, "docs/runbooks/") {
			t.Errorf("%s: runbook %q: %v", a.Name, book, err)
		}
		if !strings.Contains(string(text), a.Name) {
			t.Errorf("%s does not say that %s leads to it", book, a.Name)
		}
		test, ok := followed[a.Name]
		if !ok || !strings.Contains(e2e, "func "+test+"(t *testing.T)") {
			t.Errorf("%s: there is no end-to-end test %q", a.Name, test)
		}
	}
	for name := range followed {
		if !seen[name] {
			t.Errorf("there is no alert %s", name)
		}
	}
}

func mustAlerts(t *testing.T) []Alert {
	t.Helper()
	alerts, err := Alerts()
	if err != nil || len(alerts) < 10 {
		t.Fatalf("%d alerts, %v", len(alerts), err)
	}
	return alerts
}

func endToEnd(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("../../test/e2e/*_test.go")
	if err != nil || files == nil {
		t.Fatalf("no end-to-end tests: %v", err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}

type source struct{ st admin.Status }

func (s source) Status(context.Context) admin.Status { return s.st }

// exported is what a node with everything exports: it leads, has a proxy, a certificate and one of each event.
func exported(t *testing.T) map[string][][]string {
	t.Helper()
	m := obs.NewMetrics("scope", "coord-1", "test")
	m.Certificate("node", time.Now)
	m.Proxy([]obs.Proxy{{Listener: "coordinator", Refused: map[string]uint64{"full": 1}}})
	m.Tick(time.Millisecond)
	m.Decision("R110")
	m.Failover(1)
	obs.NewEvents(slog.New(slog.DiscardHandler), m, 1).Emit(t.Context(), obs.Event{Kind: obs.Promoted})
	s := api.New(api.Config{Source: source{admintest.Status(admintest.Coord1)}, Metrics: m, Log: slog.New(slog.DiscardHandler)})
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	out := map[string][][]string{}
	Exported(w.Body.String(), out)
	return out
}

func TestNothingIsAskedThatNobodyExports(t *testing.T) {
	have := exported(t)
	queries, err := DashboardQueries()
	if err != nil || len(queries) < 20 {
		t.Fatalf("%d queries, %v", len(queries), err)
	}
	for _, a := range mustAlerts(t) {
		queries[a.Name] = a.Expr
	}
	for of, q := range queries {
		if missing := Missing(q, have); missing != nil {
			t.Errorf("%s: %s: %s", of, q, strings.Join(missing, "; "))
		}
	}
}

// TestMissingIsSeen: the check above can fail.
func TestMissingIsSeen(t *testing.T) {
	have := exported(t)
	for q, want := range map[string]string{
		"matriarch_nothing > 0":                                                   "no node exports matriarch_nothing",
		`sum by (color) (matriarch_raft_leader)`:                                  "matriarch_raft_leader has no label color",
		`matriarch_events_total{sort="x"}`:                                        "matriarch_events_total has no label sort",
		`rate(matriarch_events_total{kind="promoted"}[5m]) and matriarch_nowhere`: "no node exports matriarch_nowhere",
		`patroni_primary == 1 and on (scope, taste) patroni_postgres_streaming`:   "has no label taste",
		`1 + 2`: "it reads no metric",
	} {
		if got := strings.Join(Missing(q, have), "; "); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", q, got, want)
		}
	}
}

func TestUses(t *testing.T) {
	got := Uses(`histogram_quantile(0.9, sum by (le) (rate(a_bucket{x="} y",name=~"n.*"}[$__rate_interval]))) > 5 and on (scope) b offset 5m < 1e9`)
	want := []Use{{"a_bucket", []string{"le", "name", "scope", "x"}}, {"b", []string{"le", "scope"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestSummariesUseLabelsThatAreThere: a template with a label that the expression has lost shows nothing.
func TestSummariesUseLabelsThatAreThere(t *testing.T) {
	label := regexp.MustCompile(`\$labels\.(\w+)`)
	by := regexp.MustCompile(`^(?:sum|max|count) by \(([^)]*)\)`)
	for _, a := range mustAlerts(t) {
		kept := by.FindStringSubmatch(a.Expr)
		for _, m := range label.FindAllStringSubmatch(a.Annotations["summary"]+a.Annotations["description"], -1) {
			if kept != nil && !strings.Contains(kept[1], m[1]) {
				t.Errorf("%s: the expression drops %s", a.Name, m[1])
			}
		}
	}
}

func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if promtool, err = filepath.Abs("../../.cache/promtool"); err == nil {
			_, err = os.Stat(promtool)
		}
	}
	if err != nil {
		t.Skip("no promtool here (make deps fetches it on Debian): only the Go tests have looked at the rules")
	}
	if out, err := exec.Command(promtool, "check", "rules", "alerts.yml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := exec.Command(promtool, "test", "rules", "alerts_test.yml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
