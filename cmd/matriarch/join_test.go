package main

import (
	"os"
	"path/filepath"
	"testing"

	"matriarch/internal/identity"
)

// Nodes that rejoin a recovered cluster with their old logs elect each other and overwrite what was recovered.
func TestOldLogIsSetAside(t *testing.T) {
	dir := identity.Dir(t.TempDir())
	raft := filepath.Join(string(dir), "raft")
	write := func() {
		if err := os.MkdirAll(raft, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(raft, "raft.db"), []byte("log"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	aside := func() []string {
		found, err := filepath.Glob(raft + ".incarnation-*/raft.db")
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	write()
	if err := leaveOldLog(dir, raft, 1); err != nil || len(aside()) != 0 {
		t.Fatalf("a host that belongs to no cluster: %v %v", err, aside())
	}
	if err := dir.Save(identity.Identity{ClusterID: "c", Incarnation: 1, NodeID: "n", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := leaveOldLog(dir, raft, 1); err != nil || len(aside()) != 0 {
		t.Fatalf("a repeated join: %v %v", err, aside())
	}
	if err := leaveOldLog(dir, raft, 2); err != nil || len(aside()) != 1 {
		t.Fatalf("a join into incarnation 2: %v %v", err, aside())
	}
	if _, err := os.Stat(raft); !os.IsNotExist(err) {
		t.Errorf("the old log is still in place: %v", err)
	}
	if err := leaveOldLog(dir, raft, 2); err != nil || len(aside()) != 1 {
		t.Errorf("the same join again: %v %v", err, aside())
	}
}
