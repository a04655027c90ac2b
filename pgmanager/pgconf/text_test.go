package pgconf

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"matriarch/fsm"
)

func TestParseVersion(t *testing.T) {
	for _, tc := range []struct {
		in    string
		want  Version
		shown string
	}{
		{"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 150018, "15.18"},
		{"15\n", 150000, "15.0"},
		{"18beta1", 180000, "18.0"},
		{"pg_basebackup (PostgreSQL) 17rc1", 170000, "17.0"},
		{"postgres (PostgreSQL) 19devel", 190000, "19.0"},
	} {
		got, err := ParseVersion(tc.in)
		if err != nil || got != tc.want || got.String() != tc.shown {
			t.Errorf("%q: %d %v", tc.in, got, err)
		}
	}
	for _, in := range []string{"", "fifteen", "15.x", "9999.1", "postgres (EnterpriseDB) 15.1"} {
		if v, err := ParseVersion(in); err == nil {
			t.Errorf("%q: %d", in, v)
		}
	}
	if Version(130009).Supported() || !Version(140000).Supported() || !Version(180006).Supported() || Version(190000).Supported() {
		t.Error("supported versions are 14 to 18")
	}
}

func TestSyncNames(t *testing.T) {
	for _, tc := range []struct {
		k     int
		names []string
		want  string
	}{
		{0, []string{"a"}, ""},
		{1, nil, ""},
		{1, []string{"m_a_e1_2"}, `ANY 1 ("m_a_e1_2")`},
		{2, []string{"a", `b"c`}, `ANY 2 ("a", "b""c")`},
	} {
		if got := SyncNames(tc.k, tc.names); got != tc.want {
			t.Errorf("%d %v: %s", tc.k, tc.names, got)
		}
	}
	if got := FirstSyncNames(2, []string{"b", "a"}); got != `FIRST 2 ("b", "a")` {
		t.Error(got)
	}
	for _, tc := range []struct {
		in    string
		k     int
		names []string
	}{
		{"", 0, nil}, {"any 2 (a, B_1)", 2, []string{"a", "B_1"}}, {`ANY  3  ( "x y" ,z )`, 3, []string{"x y", "z"}},
	} {
		k, names, err := ParseSyncNames(tc.in)
		if err != nil || k != tc.k || !slices.Equal(names, tc.names) {
			t.Errorf("%q: %d %v %v", tc.in, k, names, err)
		}
	}
	for _, in := range []string{"*", "a,b", "FIRST 1 (a)", "2 (a, b)", "ANY 1 ()", "ANY 1 (a", "ANY 1 (*)", "ANY 0 (a)", "ANY 1 (a) b", `ANY 1 ("")`, "ANY 1 (a b)"} {
		if k, names, err := ParseSyncNames(in); err == nil {
			t.Errorf("%q: %d %v", in, k, names)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(1, 9).Draw(t, "k")
		names := rapid.SliceOfN(rapid.StringMatching(`.{1,20}`), 1, 5).Draw(t, "names")
		gotK, got, err := ParseSyncNames(SyncNames(k, names))
		if err != nil || gotK != k || !slices.Equal(got, names) {
			t.Fatalf("%d %v: %v", gotK, got, err)
		}
	})
}

func TestNames(t *testing.T) {
	id := fsm.NodeID("3F2504E0-4f89-11d3-9a0c-0305e82c3301")
	if got := AppName(id, fsm.Epoch{Inc: 1, N: 17}); got != "m_3f2504e0_e1_17" {
		t.Error(got)
	}
	if got := SlotName(id); got != "m_3f2504e0_4f89_11d3_9a0c_0305e82c3301" {
		t.Error(got)
	}
	slot := regexp.MustCompile(`^[a-z0-9_]{1,63}$`)
	rapid.Check(t, func(t *rapid.T) {
		id := fsm.NodeID(rapid.String().Draw(t, "id"))
		e := fsm.Epoch{Inc: rapid.Uint64().Draw(t, "inc"), N: rapid.Uint64().Draw(t, "n")}
		if a := AppName(id, e); !slot.MatchString(a) || !strings.HasSuffix(a, e.Suffix()) || a == AppName(id, fsm.Epoch{Inc: e.Inc, N: e.N + 1}) {
			t.Fatal(a)
		}
		if s := SlotName(id); !slot.MatchString(s) || !strings.HasPrefix(s, SlotPrefix) {
			t.Fatal(s)
		}
	})
}

func TestConninfo(t *testing.T) {
	c := Conninfo{"host": "h", "user": `o'b\x`, "dbname": "", "port": "5432"}
	if got, want := c.String(), `host='h' port='5432' user='o\'b\\x'`; got != want {
		t.Errorf("%s", got)
	}
	for _, tc := range []struct {
		in   string
		want Conninfo
	}{
		{"", Conninfo{}},
		{"host=a port = 5 user= 'b c'  ", Conninfo{"host": "a", "port": "5", "user": "b c"}},
		{`a=b\ c`, Conninfo{"a": "b c"}},
	} {
		if got, err := ParseConninfo(tc.in); err != nil || !cmp.Equal(got, tc.want) {
			t.Errorf("%q: %v %v", tc.in, got, err)
		}
	}
	for _, in := range []string{"host", "=x", "host='a", "postgres://u:secret@h/db", "a b=c"} {
		_, err := ParseConninfo(in)
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", in, err)
		}
	}
	if _, err := ParseConninfo("password=secret x"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("shows the password: %v", err)
	}
	rapid.Check(t, func(t *rapid.T) {
		c := Conninfo(rapid.MapOf(rapid.StringMatching(`[a-z_]{1,12}`), rapid.StringN(1, 20, -1)).Draw(t, "c"))
		if got, err := ParseConninfo(c.String()); err != nil || !cmp.Equal(got, c) {
			t.Fatalf("%v %v", got, err)
		}
	})
}

func TestRenderHBA(t *testing.T) {
	const closed = "local all \"boss\" scram-sha-256\n"
	addresses := []string{"10.0.0.1/32", "fd00::1/128", "10.1.0.0/16", `"db1.example"`}
	each := func(format string, args ...any) (out string) {
		for _, a := range addresses {
			out += fmt.Sprintf(format+"\n", append([]any{a}, args...)...)
		}
		return out
	}
	// Standbys stream from one address only: no other may replicate.
	passwords := closed + "host replication \"repl\" 10.0.0.1/32 scram-sha-256\n" + each(`host all "boss" %s scram-sha-256`)
	required := closed + "hostssl replication \"repl\" 10.0.0.1/32 cert\n" + each(`hostssl all "boss" %s cert`)
	both := closed + "hostssl replication \"repl\" 10.0.0.1/32 cert\nhostnossl replication \"repl\" 10.0.0.1/32 scram-sha-256\n" +
		each("hostssl all \"boss\" %[1]s cert\nhostnossl all \"boss\" %[1]s scram-sha-256")
	links := each("hostssl all +matriarch_links %s trust clientcert=verify-ca")
	defaults := "local all \"repl\" reject\nhost all \"repl\" all reject\nlocal all all scram-sha-256\nhost all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n"
	for _, tc := range []struct {
		name     string
		phase    Phase
		lines    []string
		security Security
		links    bool
		want     string
	}{
		{"closed", Closed, nil, Passwords, true, closed},
		{"closed to the user's lines", Closed, []string{"host all all all trust"}, Required, true, closed},
		{"members by password", Members, []string{"host all all all trust"}, Passwords, true, passwords},
		{"members by certificate", Members, nil, Required, true, required},
		{"members while the formation moves", Members, nil, Both, false, both},
		{"open", Open, nil, Passwords, true, passwords + defaults},
		{"open with links", Open, nil, Required, true, required + links + defaults},
		{"open without Citus", Open, nil, Required, false, required + defaults},
		{"a line cannot begin another", Open, []string{"hostssl app app 10.0.0.0/8 cert\nlocal all all trust"}, Passwords, false, passwords + "hostssl app app 10.0.0.0/8 cert local all all trust\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, got, _ := strings.Cut(string(RenderHBA(HBA{
				Phase: tc.phase, Superuser: "boss", ReplicationUser: "repl", Nodes: []string{"10.0.0.1", "fd00::1", "10.1.0.0/16", "db1.example"},
				Standbys: []string{"10.0.0.1"}, Security: tc.security, Links: tc.links, Lines: tc.lines,
			})), "\n")
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestQuoteLiteral(t *testing.T) {
	for in, want := range map[string]string{"a": "'a'", "o'b": "'o''b'", `a\b`: ` E'a\\b'`} {
		if got := QuoteLiteral(in); got != want {
			t.Errorf("%q: %s", in, got)
		}
	}
	if got := PassfileLine(`a:b`, `c\d`); got != `*:*:*:a\:b:c\\d`+"\n" {
		t.Errorf("%q", got)
	}
}

func FuzzParseSyncNames(f *testing.F) {
	f.Add(`ANY 1 ("a""b", c)`)
	f.Fuzz(func(t *testing.T, s string) {
		if k, names, err := ParseSyncNames(s); err == nil && k > 0 {
			k2, names2, err := ParseSyncNames(SyncNames(k, names))
			if err != nil || k2 != k || !slices.Equal(names, names2) {
				t.Fatalf("%d %v, then %d %v %v", k, names, k2, names2, err)
			}
		}
	})
}

func FuzzParseConninfo(f *testing.F) {
	f.Add(`a='b\'c' d=e`)
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseConninfo(s)
		if err != nil {
			return
		}
		for k, v := range c {
			if v == "" {
				delete(c, k)
			}
		}
		if again, err := ParseConninfo(c.String()); err != nil || !cmp.Equal(c, again) {
			t.Fatalf("%v %v %v", c, again, err)
		}
	})
}
