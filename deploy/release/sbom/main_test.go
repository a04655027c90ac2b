package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// TestBillOfThisTest uses the test's own program, which Go marks like any other.
func TestBillOfThisTest(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var a, b bytes.Buffer
	if err := run([]string{"-version", "1.2.3", exe}, &a); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"-version", "1.2.3", exe}, &b); err != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Errorf("not the same twice: %v", err)
	}
	var got bill
	if err := json.Unmarshal(a.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	p := got.Metadata.Component
	if p.Version != "1.2.3" || len(p.Hashes) != 1 || len(p.Hashes[0].Content) != 64 || got.Components[0].Name != "std" || !strings.HasPrefix(got.Components[0].Version, "1.") {
		t.Errorf("got %+v, %+v", p, got.Components[0])
	}
	if len(got.Dependencies[0].DependsOn) != len(got.Components) {
		t.Errorf("got %+v", got.Dependencies)
	}
}

func TestRefuses(t *testing.T) {
	for _, args := range [][]string{{}, {"a", "b"}, {"/nowhere"}, {"main.go"}} {
		if err := run(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
