package config

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the generated files")

// TestGenerated fails when the struct has changed and the files made from it have not.
func TestGenerated(t *testing.T) {
	for path, want := range map[string]string{
		filepath.Join("..", "..", "docs", "configuration.md"): Reference(),
		"sample.yaml": Sample(),
	} {
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(got), want); diff != "" {
			t.Errorf("%s is out of date, run 'go generate ./internal/config' (-file +code):\n%s", path, diff)
		}
	}
}

func TestSampleIsTheDefault(t *testing.T) {
	got, err := Parse([]byte(Sample()), "sample.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := Default().Complete()
	want.Peers, want.PostgreSQL.HBA, want.PostgreSQL.Parameters = []string{}, []string{}, map[string]string{}
	want.API.Allow, want.Certificates.Names = []string{}, []string{}
	want.Hooks.PrePromote, want.Hooks.FenceCommand, want.Hooks.OnRoleChange = []string{}, []string{}, []string{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-default +sample):\n%s", diff)
	}
}

func TestEveryKeyIsExplained(t *testing.T) {
	reference := Reference()
	walk(reflect.ValueOf(Default()), "", func(f field, _ reflect.Value) {
		if len(f.help) < 15 || !strings.HasSuffix(f.help, ".") {
			t.Errorf("%s: the help %q is no sentence", f.path, f.help)
		}
		if !strings.Contains(reference, "| `"+f.path+"` |") {
			t.Errorf("%s is not in the reference", f.path)
		}
	})
}
