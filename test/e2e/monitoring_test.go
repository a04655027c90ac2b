package e2e

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"matriarch/deploy/monitoring"
	"matriarch/internal/testkit"
)

// TestMonitoring: what alerts and dashboard ask for is exported by real nodes, and two runbooks are followed from the alert to its end.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	c.Proxy = true
	c.Bootstrap("n1")
	c.Join(0, "n2")
	w1 := c.Join(1, "w1")[0]
	c.WaitHealthy()

	c.Run("every query has its metrics", func(t *testing.T) {
		queries, err := monitoring.DashboardQueries()
		if err != nil {
			t.Fatal(err)
		}
		alerts, err := monitoring.Alerts()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range alerts {
			queries[a.Name] = a.Expr
		}
		c.Eventually("every query has its metrics", func() error { // some are the leader's alone, and it may move
			have := map[string][][]string{}
			for _, n := range c.Nodes {
				monitoring.Exported(scrape(t, n), have)
			}
			var lacking []error
			for of, q := range queries {
				if missing := monitoring.Missing(q, have); missing != nil {
					lacking = append(lacking, fmt.Errorf("%s: %s", of, strings.Join(missing, "; ")))
				}
			}
			return errors.Join(lacking...)
		})
	})

	c.Run("doctor and support bundle", func(t *testing.T) {
		c.Eventually("the doctor is content", func() error { // a port that answers after 100 ms is a warning
			r := w1.CLI("doctor")
			for _, want := range []string{"ok    ports", "ok    reach", "ok    certificates", "ok    configuration"} {
				if !strings.Contains(r.Out, want) {
					return fmt.Errorf("no %q in\n%s%s", want, r.Out, r.Err)
				}
			}
			return nil
		})
		var files map[string]string
		c.Eventually("the bundle is whole", func() error { // what does not answer in some seconds is left out
			file := filepath.Join(t.TempDir(), "s.tar.gz")
			mustRun(t, w1, "support-bundle", file)
			files = unpack(t, file)
			for _, name := range []string{
				"formation/list.txt", "nodes/n2/postgresql/settings.tsv", "nodes/n1/postgresql/pg_controldata.txt", "nodes/n1/logs/postgresql.log", "nodes/w1/metrics.txt", "nodes/n2/doctor.txt", "nodes/n1/explain.txt",
			} {
				if files[name] == "" {
					return fmt.Errorf("no %s: %s", name, files["missing.txt"]+files["nodes/n1/errors.txt"])
				}
			}
			return nil
		})
		for _, n := range c.Nodes {
			secrets, err := filepath.Glob(filepath.Join(n.Dir, "secrets", "*"))
			if err != nil || secrets == nil {
				t.Fatalf("no secrets in %s: %v", n.Dir, err)
			}
			for _, s := range secrets {
				secret, err := os.ReadFile(s)
				if err != nil {
					t.Fatal(err)
				}
				for name, text := range files {
					if strings.Contains(text, strings.TrimSpace(string(secret))) {
						t.Errorf("%s holds %s", name, s)
					}
				}
			}
		}
	})

	c.Run("paused", func(t *testing.T) {
		mustRun(t, w1, "config", "set", "--group", "0", "paused=true")
		c.Eventually("the alert's metric", func() error { return says(t, c, "matriarch_group_paused", 1) })
		mustRun(t, w1, "config", "set", "--group", "0", "paused=false")
		c.Eventually("its end", func() error { return says(t, c, "matriarch_group_paused", 0) })
	})

	c.Run("commits wait, then go on with one copy, then with two", func(t *testing.T) {
		mustRun(t, w1, "config", "set", "--group", "0", "strict=true")
		primary := c.WaitPrimary(0)
		standby := others(c.Nodes[:2], primary)[0]
		standby.PowerOff()
		c.Eventually("the alert's metric", func() error { return says(t, c, "matriarch_group_waiting", 1) })
		mustRun(t, w1, "config", "set", "--group", "0", "strict=false")
		c.Eventually("its end", func() error { return says(t, c, "matriarch_group_waiting", 0) })
		standby.Start()
		c.WaitHealthy()
		c.Eventually("it is not degraded", func() error { return says(t, c, "matriarch_group_degraded", 0) })
	})
}

// unpack reads a support bundle.
func unpack(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimPrefix(h.Name, "matriarch-support/")] = string(b)
	}
}

func mustRun(t *testing.T, n *testkit.Node, args ...string) {
	t.Helper()
	if r := n.CLI(args...); r.Code != 0 {
		t.Fatalf("%v: exit %d\n%s%s", args, r.Code, r.Out, r.Err)
	}
}

// scrape is what Prometheus would see of a node; nothing of one that does not run.
func scrape(t *testing.T, n *testkit.Node) string {
	t.Helper()
	if !n.Running() {
		return ""
	}
	resp, err := http.Get("http://" + n.API() + "/metrics")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return ""
	}
	return string(b)
}

// says reports whether the leader exports this value for group 0.
func says(t *testing.T, c *testkit.Cluster, metric string, value int) error {
	t.Helper()
	last := "nobody exports it"
	for _, n := range c.Nodes {
		for line := range strings.Lines(scrape(t, n)) {
			if !strings.HasPrefix(line, metric+"{") || !strings.Contains(line, `group="0"`) {
				continue
			}
			if last = strings.TrimSpace(line); strings.HasSuffix(last, fmt.Sprintf(" %d", value)) {
				return nil
			}
		}
	}
	return fmt.Errorf("%s is not %d: %s", metric, value, last)
}
