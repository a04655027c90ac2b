package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// valid is the smallest configuration without a problem.
func valid() Config {
	c := Default()
	c.Node.ID = "3f0a4c1e-7d0b-4a53-9d2e-0b7f4f6f1c11"
	c.Node.Name = "n1"
	c.Advertise = "10.0.0.1:7400"
	return c
}

const validYAML = `node:
  id: 3f0a4c1e-7d0b-4a53-9d2e-0b7f4f6f1c11
  name: n1
advertise: 10.0.0.1:7400
`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "matriarch.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// lines returns the error's lines with the file's path taken off.
func lines(err error, path string) []string {
	if err == nil {
		return nil
	}
	return strings.Split(strings.ReplaceAll(err.Error(), path, "FILE"), "\n")
}

func TestComplete(t *testing.T) {
	c := valid()
	c.StateDir = "/srv/m"
	c.PostgreSQL.Listen = "0.0.0.0:6000"
	c.PostgreSQL.LogFile = "/var/log/pg.log"
	got := c.Complete()

	want := c
	want.API.Advertise = "10.0.0.1:8008"
	want.RaftDir = "/srv/m/raft"
	want.PostgreSQL.Advertise = "10.0.0.1:6000"
	want.PostgreSQL.DataDir = "/srv/m/pgdata"
	want.PostgreSQL.SocketDir = "/srv/m/run"
	want.Sentinel.Socket = "/srv/m/sentinel.sock"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(got, got.Complete()); diff != "" {
		t.Errorf("a second Complete changes it:\n%s", diff)
	}
	if got, want := c.SecretsDir(), "/srv/m/secrets"; got != want {
		t.Errorf("SecretsDir = %s, want %s", got, want)
	}
}

func TestAdvertiseFollowsListen(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.5:7400":      "127.0.0.5:7400",
		"[2001:db8::1]:7400":  "[2001:db8::1]:7400",
		"host1.example.:7400": "host1.example.:7400",
		"0.0.0.0:7400":        "",
		"[::]:7400":           "",
		":7400":               "",
		"nonsense":            "",
	} {
		c := Default()
		c.Listen = listen
		if got := c.Complete().Advertise; got != want {
			t.Errorf("listen %q: advertise = %q, want %q", listen, got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	got, err := Load(write(t, validYAML+`
postgresql:
  parameters: {work_mem: 64MB, max_connections: 300, jit: off}
  hba: ["host all all 10.0.0.0/8 scram-sha-256"]
citus: {enabled: false}
proxy: {coordinator: {listen: ":6433"}, wait_limit: 1m, proxy_protocol: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := valid()
	want.PostgreSQL.Parameters = map[string]string{"work_mem": "64MB", "max_connections": "300", "jit": "off"}
	want.PostgreSQL.HBA = []string{"host all all 10.0.0.0/8 scram-sha-256"}
	want.Citus.Enabled = false
	want.Proxy.Coordinator.Listen, want.Proxy.WaitLimit, want.Proxy.ProxyProtocol = ":6433", time.Minute, true
	if diff := cmp.Diff(want.Complete(), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUserTags(t *testing.T) {
	got, err := Parse([]byte("node: {tags: {nosync: true, rack: 7, ssd: true}}"), "f")
	if err != nil {
		t.Fatal(err)
	}
	want := Tags{NoSync: true, FailoverPriority: 1, User: map[string]string{"rack": "7", "ssd": "true"}}
	if diff := cmp.Diff(want, got.Node.Tags); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseNothing(t *testing.T) {
	for _, text := range []string{"", "# only a comment\n", "---\n", "node:\nlisten:\n", "{}"} {
		got, err := Parse([]byte(text), "f")
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if diff := cmp.Diff(Default(), got); diff != "" {
			t.Errorf("%q is not the default (-want +got):\n%s", text, diff)
		}
	}
}

// TestStrict: what does not fit the struct is refused with file, line, key and, where one is near, the key that was meant.
func TestStrict(t *testing.T) {
	for name, tc := range map[string]struct {
		yaml string
		want []string
	}{
		"mistyped key":        {"\nadvertize: a:1", []string{"FILE:2: unknown key advertize: did you mean advertise?"}},
		"mistyped nested key": {"postgresql:\n  data_dri: /x", []string{"FILE:2: unknown key postgresql.data_dri: did you mean data_dir?"}},
		"wrong case":          {"Listen: a:1", []string{"FILE:1: unknown key Listen: did you mean listen?"}},
		"foreign key":         {"citus: {database: app}", []string{"FILE:1: unknown key citus.database: the keys here are enabled"}},
		"key one level off":   {"name: n1", []string{"FILE:1: unknown key name: did you mean node?"}},
		"several at once": {"ttl: 5\nnode:\n  group: one\n", []string{
			"FILE:1: unknown key ttl: the keys here are node, listen, advertise, api, state_dir, raft_dir, postgresql, certificates, citus, proxy, log, sentinel, hooks, stop, peers",
			`FILE:3: node.group: expected a whole number, found "one"`,
		}},
		"given twice":         {"listen: a:1\nlisten: b:1", []string{"FILE:2: listen: given twice, first in line 1: remove one"}},
		"text for boolean":    {"citus: {enabled: maybe}", []string{`FILE:1: citus.enabled: expected true or false, found "maybe"`}},
		"fraction for number": {"node: {group: 1.5}", []string{`FILE:1: node.group: expected a whole number, found "1.5"`}},
		"time without unit":   {"proxy: {wait_limit: 10}", []string{`FILE:1: proxy.wait_limit: expected a time with its unit, for instance 500ms or 10s, found "10"`}},
		"no time":             {"proxy: {wait_limit: soon}", []string{`FILE:1: proxy.wait_limit: expected a time with its unit, for instance 500ms or 10s, found "soon"`}},
		"proxy's port a key":  {"proxy: {coordinator: 0.0.0.0:6433}", []string{`FILE:1: proxy.coordinator: expected keys and values, found "0.0.0.0:6433"`}},
		"text for mapping":    {"node: n1", []string{`FILE:1: node: expected keys and values, found "n1"`}},
		"list for text":       {"listen: [a]", []string{"FILE:1: listen: expected a text, found a list"}},
		"mapping for text":    {"node: {name: {a: b}}", []string{"FILE:1: node.name: expected a text, found keys and values"}},
		"text for list":       {"peers: a:1", []string{`FILE:1: peers: expected a list of texts, found "a:1"`}},
		"list in list":        {"peers:\n  - a:1\n  - [b:1]", []string{"FILE:3: peers[1]: expected a text, found a list"}},
		"text for parameters": {"postgresql: {parameters: x}", []string{`FILE:1: postgresql.parameters: expected names with a text each, found "x"`}},
		"list in parameters":  {"postgresql: {parameters: {work_mem: [1]}}", []string{"FILE:1: postgresql.parameters.work_mem: expected a text, found a list"}},
		"list in tags":        {"node: {tags: {rack: [1]}}", []string{"FILE:1: node.tags.rack: expected a text, found a list"}},
		"list as the file":    {"- a", []string{"FILE:1: the file: expected keys and values, found a list"}},
		"two documents":       {"listen: a:1\n---\nlisten: b:1", []string{"FILE: more than one YAML document: keep one and remove the line '---' with what follows it"}},
		"not YAML":            {"listen: [", []string{"FILE: yaml: line 1: did not find expected node content"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, tc.yaml)
			_, err := Load(path)
			if diff := cmp.Diff(tc.want, lines(err, path)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadNamesLinesOfInvalidValues(t *testing.T) {
	path := write(t, validYAML+"postgresql:\n  listen: 10.0.0.1\n  parameters:\n    good: 1\n    bad-name: 1\npeers:\n  - n2:7400\n  - n3\nstate_dir: relative\n")
	_, err := Load(path)
	want := []string{
		`FILE:6: postgresql.listen: "10.0.0.1" must be host:port, for instance 10.0.0.1:7400 or [2001:db8::1]:7400`,
		`FILE:12: peers[1]: "n3" must be host:port, for instance 10.0.0.1:7400 or [2001:db8::1]:7400`,
		`FILE:13: state_dir: "relative" must be an absolute path in its shortest form, for instance /var/lib/matriarch`,
		`FILE:9: postgresql.parameters.bad-name: is no name of a PostgreSQL setting`,
	}
	if diff := cmp.Diff(want, lines(err, path)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLoadUnreadable(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"))
	if err == nil || !strings.Contains(err.Error(), "none.yaml") || !strings.Contains(err.Error(), "matriarch bootstrap") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Load(t.TempDir()); err == nil || !strings.HasPrefix(err.Error(), "read configuration: ") {
		t.Errorf("directory: %v", err)
	}
}

func TestSave(t *testing.T) {
	path := write(t, "older, and of another mode")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	c := valid()
	c.PostgreSQL.Parameters = map[string]string{"shared_buffers": "1GB", "x.y": "on", "empty": ""}
	c.Node.Tags.User = map[string]string{"rack": "7"}
	c.Peers = []string{"n2:7400"}
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c.Complete(), got); diff != "" {
		t.Errorf("(-saved +loaded):\n%s", diff)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestSaveRefusesTheInvalid(t *testing.T) {
	path := write(t, validYAML)
	c := valid()
	c.Node.Name = "Not A Name"
	if err := c.Save(path); err == nil || !strings.Contains(err.Error(), "node.name") {
		t.Errorf("Save of an invalid configuration: %v", err)
	}
	if _, err := Load(path); err != nil {
		t.Errorf("the old file was touched: %v", err)
	}
	c = valid()
	gone := filepath.Join(t.TempDir(), "gone", "matriarch.yaml")
	if err := c.Save(gone); err == nil || !strings.Contains(err.Error(), filepath.Dir(gone)) {
		t.Errorf("Save into a missing directory: %v", err)
	}
}

// TestRoundTrip: whatever valid configuration is saved is what is loaded.
func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "matriarch.yaml")
	text := rapid.StringMatching(`[ -~äß☃#:'"{}\[\]&*!|>%@-]{0,20}`)
	rapid.Check(t, func(t *rapid.T) {
		c := valid()
		c.Node.Name = rapid.StringMatching(`[a-z0-9-]{1,40}`).Draw(t, "name")
		c.Node.Group = rapid.IntRange(0, 1000).Draw(t, "group")
		c.Node.Tags.FailoverPriority = rapid.IntRange(0, 1000).Draw(t, "priority")
		c.Node.Tags.User = rapid.MapOf(rapid.StringMatching(`zone\.[a-z0-9]{3,10}`), text).Draw(t, "tags")
		c.PostgreSQL.Parameters = rapid.MapOf(rapid.StringMatching(`[a-z_]{1,20}(\.[a-z]{1,5})?`), text).Draw(t, "parameters")
		c.PostgreSQL.HBA = rapid.SliceOf(rapid.StringMatching(`host [a-z"#: ]{1,20}`)).Draw(t, "hba")
		c.Citus.Enabled = rapid.Bool().Draw(t, "citus")
		if err := c.Save(path); err != nil {
			t.Fatal(err)
		}
		got, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.Complete(), got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-saved +loaded):\n%s", diff)
		}
	})
}

// FuzzParse: no input makes the reader panic, and what it accepts it can say again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(validYAML))
	f.Add([]byte(Sample()))
	f.Add([]byte("node: &a {name: *a}"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("<<: {listen: a}"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		if c, err := Parse(data, "f"); err == nil {
			_ = c.Validate()
		}
	})
}

func TestFree(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		text string
		want bool
	}{"empty": {"", true}, "remarks only": {"# one\n\n# two\n", true}, "a setting": {"# one\nlisten: 10.0.0.1:7400\n", false}, "broken": {"{", false}, "null": {"---\n", false}} {
		file := filepath.Join(dir, "f.yml")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Free(file); err != nil || got != c.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if got, err := Free(filepath.Join(dir, "absent.yml")); err != nil || !got {
		t.Errorf("absent: %v, %v", got, err)
	}
}
