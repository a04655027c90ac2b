package pgmanager

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestHBALines(t *testing.T) {
	text := "# a comment\n\nlocal all all peer\t# why\n  host \"my#db\" all 10.0.0.0/8 \\\n  md5\r\nhostssl all @admins,bob ::1/128 cert map=x\n" +
		"host @/abs/list all all trust\ninclude extra.conf\ninclude_dir \"more d\"\ninclude /etc/hba\n#\n"
	want := []string{
		"local all all peer",
		`host "my#db" all 10.0.0.0/8   md5`,
		"hostssl all @/etc/pg/admins,bob ::1/128 cert map=x",
		"host @/abs/list all all trust",
		`include "/etc/pg/extra.conf"`,
		`include_dir "/etc/pg/more d"`,
		"include /etc/hba",
	}
	if diff := cmp.Diff(want, hbaLines(text, "/etc/pg")); diff != "" {
		t.Error(diff)
	}
}

func TestClientLinesOfAnEmptyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pg_hba.conf")
	if err := os.WriteFile(path, withBlock([]byte("# nobody\n"), []byte("local all x trust\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := clientLines(path)
	if diff := cmp.Diff([]string{nobody}, got); err != nil || diff != "" {
		t.Errorf("nobody was let in before: %s%v", diff, err)
	}
}

func TestBlockComesAndGoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOf(rapid.SampledFrom([]string{"", "# x", "local all all peer", "host all all ::/0 md5", "#BEGIN", "# END"})).Draw(t, "lines")
		file := []byte(strings.Join(lines, "\n"))
		with := file
		var last []byte
		for i := range rapid.IntRange(1, 3).Draw(t, "times") {
			last = []byte(strings.Repeat("local all m scram-sha-256\n", i+1))
			with = withBlock(with, last)
		}
		if !bytes.HasPrefix(with, []byte(blockBegin+string(last)+blockEnd)) || bytes.Count(with, []byte(blockBegin)) != 1 {
			t.Fatalf("block not at the top, or twice: %q", with)
		}
		if got := withBlock(with, nil); !bytes.Equal(got, file) {
			t.Fatalf("%q came back as %q", file, got)
		}
	})
}

func TestListensOn(t *testing.T) {
	for _, tc := range []struct {
		addresses, host string
		want            bool
	}{
		{"*", "10.0.0.1", true},
		{"localhost, 10.0.0.1", "10.0.0.1", true},
		{"localhost", "10.0.0.1", false},
		{"localhost", "127.0.0.1", true},
		{"", "127.0.0.1", false},
		{"10.0.0.10", "10.0.0.1", false},
		{"::", "fd00::1", true},
		{"::", "10.0.0.1", false},
		{"0.0.0.0", "10.0.0.1", true},
	} {
		if got := listensOn(tc.addresses, tc.host); got != tc.want {
			t.Errorf("%q for %s: %v", tc.addresses, tc.host, got)
		}
	}
}
