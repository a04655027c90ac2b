package pgconf

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func base() Settings {
	return Settings{
		Name: "group 0", Host: "10.0.0.1", Port: 5432, ListenAddresses: "10.0.0.1", SocketDir: "/run/m", HBAFile: "/var/lib/m/hba.conf",
		SyncNames: SyncNames(1, []string{"a", "b"}), PrimaryConninfo: Conninfo{"host": "x", "passfile": `/p'q`}.String(), PrimarySlotName: "m_a",
	}
}

func TestManaged(t *testing.T) {
	s := base()
	s.Citus, s.Databases = true, 2
	s.Parameters = map[string]string{"Max_Connections": "300", "shared_preload_libraries": "pg_stat_statements, citus", "work_mem": "8MB", "wal_keep_size": "1GB"}
	m := s.Managed()
	for k, want := range map[string]string{
		"wal_level": "logical", "hot_standby": "on", "wal_log_hints": "on", "restart_after_crash": "off", "port": "5432",
		"synchronous_standby_names": `ANY 1 ("a", "b")`, "max_connections": "300", "max_prepared_transactions": "600",
		"max_worker_processes": "24", "shared_preload_libraries": "citus,pg_stat_statements", "work_mem": "8MB", "wal_keep_size": "1GB",
		"citus.recover_2pc_interval": "-1", "citus.local_hostname": "10.0.0.1", "wal_receiver_timeout": "3s",
	} {
		if m[k] != want {
			t.Errorf("%s = %q, want %q", k, m[k], want)
		}
	}
	s.Citus = false
	for k := range s.Managed() {
		if strings.HasPrefix(k, "citus") {
			t.Errorf("%s without Citus", k)
		}
	}
	s.TLS = &TLS{Server: KeyPair{Cert: "/c", Key: "/k"}, CAFile: "/a"}
	if m := s.Managed(); m["ssl"] != "on" || m["ssl_key_file"] != "/k" {
		t.Errorf("TLS: %v", m)
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		key, value string
		citus      bool
		want       string
	}{
		{"work_mem", "8MB", false, ""},
		{"max_connections", "500", true, ""},
		{"auto_explain.log_min_duration", "1s", false, ""},
		{"max_worker_processes", "64", true, ""},
		{"max_worker_processes", "17", true, "max_worker_processes"},
		{"max_worker_processes", "17", false, ""},
		{"max_prepared_transactions", "10", true, "max_prepared_transactions"},
		{"max_connections", "lots", false, "max_connections"},
		{"max_connections", "3", false, "max_connections"},
		{"primary_conninfo", "host=x", false, "primary_conninfo"},
		{" Synchronous_Standby_Names ", "*", false, "synchronous_standby_names"},
		{"wal_level", "minimal", false, "wal_level"},
		{"fsync", "off", false, "loses acknowledged writes"},
		{"recovery_target_time", "x", false, "recovery_target_time"},
		{"citus.recover_2pc_interval", "60s", true, "citus.recover_2pc_interval"},
		{"work_mem = 1\nfsync", "off", false, "not the name"},
		{"a.b.c", "x", false, "not the name"},
		{"work_mem", "1\x00", false, "zero byte"},
		{"max_wal_senders", "1", false, "max_wal_senders"},
	} {
		s := base()
		s.Citus, s.Parameters = tc.citus, map[string]string{tc.key: tc.value}
		err := s.Validate()
		if (err == nil) != (tc.want == "") || (err != nil && !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%q = %q: %v, want %q", tc.key, tc.value, err, tc.want)
		}
	}
}

// Whatever a user writes, the rendered file reads back as exactly the managed settings, each once.
func TestRenderedFileReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := base()
		s.Citus = rapid.Bool().Draw(t, "citus")
		s.Name = rapid.StringMatching(`[^\x00]{0,30}`).Draw(t, "name")
		s.Parameters = rapid.MapOfN(rapid.OneOf(rapid.SampledFrom([]string{"work_mem", "fsync", "port", "max_connections"}), rapid.String()),
			rapid.StringMatching(`[^\x00]{0,30}`), 0, 6).Draw(t, "parameters")
		text := RenderManaged(s)
		if !cmp.Equal(text, RenderManaged(s)) {
			t.Fatal("not the same twice")
		}
		got := map[string]string{}
		for _, x := range ParseFile(text) {
			if _, twice := got[x.Name]; twice {
				t.Fatalf("%s twice", x.Name)
			}
			got[x.Name] = x.Value
		}
		if diff := cmp.Diff(s.Managed(), got); diff != "" {
			t.Fatal(diff)
		}
		if got["fsync"] != "" || got["port"] != "5432" || got["wal_level"] != "logical" {
			t.Fatalf("the user won: %v", got)
		}
	})
}

func TestCommandLineHoldsNothingReloadable(t *testing.T) {
	m := base().Managed()
	for _, s := range CommandLine(base()) {
		if slices.Contains([]string{"primary_conninfo", "primary_slot_name", "synchronous_standby_names"}, s.Name) || m[s.Name] != s.Value {
			t.Errorf("%s = %q on the command line", s.Name, s.Value)
		}
	}
}

func TestStripManaged(t *testing.T) {
	in := "# Do not edit\nprimary_conninfo = 'host=a user=''x'''\nwork_mem = '8MB'\nSynchronous_Standby_Names '*'\n" +
		"shared_preload_libraries='x'\ncitus.local_hostname=h\nssl = on\nprimary_slot_name = ''\nbroken 'x\n"
	rest, removed := StripManaged([]byte(in))
	if want := "# Do not edit\nwork_mem = '8MB'\nbroken 'x\n"; string(rest) != want {
		t.Errorf("rest %q", rest)
	}
	want := []string{"primary_conninfo", "synchronous_standby_names", "shared_preload_libraries", "citus.local_hostname", "ssl", "primary_slot_name"}
	if !slices.Equal(removed, want) {
		t.Errorf("removed %v", removed)
	}
}

func TestEnsureInclude(t *testing.T) {
	first, changed := EnsureInclude([]byte("port = 1\n"), "/run/a b/m.conf")
	if want := "port = 1\ninclude '/run/a b/m.conf' " + includeMark + "\n"; !changed || string(first) != want {
		t.Fatalf("%q", first)
	}
	if _, changed := EnsureInclude(first, "/run/a b/m.conf"); changed {
		t.Fatal("changed twice")
	}
	moved, changed := EnsureInclude(append(slices.Clone(first), "work_mem = 1\n"...), "/other/m.conf")
	if want := "port = 1\nwork_mem = 1\ninclude '/other/m.conf' " + includeMark + "\n"; !changed || string(moved) != want {
		t.Fatalf("%q", moved)
	}
	empty, _ := EnsureInclude(nil, "/m")
	if want := "include '/m' " + includeMark + "\n"; string(empty) != want {
		t.Fatalf("%q", empty)
	}
}

func TestEveryNeverHasAReason(t *testing.T) {
	fixed := Settings{TLS: &TLS{}, Citus: true}.fixed()
	for k := range maps.Keys(never) {
		if _, both := fixed[k]; both || never[k] == "" {
			t.Errorf("%s is in both lists or has no reason", k)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte("a = 'b''c\\n'\nx y # c\n"))
	f.Add([]byte(`a = '\777\`))
	f.Fuzz(func(t *testing.T, b []byte) {
		rest, removed := StripManaged(b)
		if again, more := StripManaged(rest); len(more) != 0 || !cmp.Equal(again, rest) {
			t.Fatalf("strip is not idempotent: removed %v, then %v", removed, more)
		}
		once, _ := EnsureInclude(b, "/m")
		if _, changed := EnsureInclude(once, "/m"); changed {
			t.Fatal("include is not idempotent")
		}
	})
}

// TestLinks: another number gives another text, which libpq and Citus take.
func TestLinks(t *testing.T) {
	seen := map[string]bool{}
	for n := range uint64(linksRange) {
		text := Settings{Citus: true, Links: n}.Managed()["citus.node_conninfo"]
		ci, err := ParseConninfo(text)
		if idle, _ := strconv.Atoi(ci["keepalives_idle"]); err != nil || idle < keepalivesIdle || ci["sslmode"] != "prefer" || len(ci) != 2 || seen[text] {
			t.Fatalf("%d gives %q: %v", n, text, err)
		}
		seen[text] = true
	}
	if _, ok := (Settings{Links: 1}).Managed()["citus.node_conninfo"]; ok {
		t.Error("without Citus nobody knows the setting")
	}
}
