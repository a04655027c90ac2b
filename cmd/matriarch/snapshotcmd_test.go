package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"matriarch/consensus"
	"matriarch/fsm"
	"matriarch/internal/admin/admintest"
	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/transport"
)

// saved writes a snapshot of the fake's formation, made by a host that has everything.
func saved(t *testing.T, rename ...fsm.NodeID) string {
	t.Helper()
	dir := identity.Dir(filepath.Join(t.TempDir(), "state"))
	ca, err := transport.NewCA(newFake().st.State.Cluster.ID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.SaveMaterial(identity.Material{CA: ca.CertPEM(), CAKey: key}); err != nil {
		t.Fatal(err)
	}
	if err := dir.SaveSecrets(map[string]string{identity.Superuser: "s3cret", identity.Replication: "r3plication"}); err != nil {
		t.Fatal(err)
	}
	s := newFake().st.State
	if len(rename) == 2 { // a node by the id that a configuration file takes
		n := s.Nodes[rename[0]]
		delete(s.Nodes, n.ID)
		n.ID = rename[1]
		s.Nodes[n.ID] = n
	}
	var state bytes.Buffer
	if err := fsm.WriteSnapshot(&state, s); err != nil {
		t.Fatal(err)
	}
	b, _, err := newBackup(state.Bytes(), dir, admintest.Now)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "snapshot")
	if err := b.write(file); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestBackup(t *testing.T) {
	file := saved(t)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	b, s, err := readBackup(file)
	if err != nil || b.Secrets[identity.Superuser] != "s3cret" || len(s.Nodes) != len(newFake().st.State.Nodes) {
		t.Fatalf("read back: %v, %d nodes", err, len(s.Nodes))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text []byte) string {
		f := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(f, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	newer, err := json.Marshal(backup{Format: backupFormat + 1, Version: "9.0"})
	if err != nil {
		t.Fatal(err)
	}
	for want, f := range map[string]string{
		"no such file":           "/nonexistent",
		"is not a file of":       write([]byte("hello")),
		"is damaged":             write(bytes.Replace(text, []byte("s3cret"), []byte("s3cre7"), 1)),
		"install a newer one":    write(newer),
		"unexpected end of JSON": write(text[:len(text)/2]),
	} {
		if _, _, err := readBackup(f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestSnapshotInspectShowsNoSecrets(t *testing.T) {
	file := saved(t)
	for _, o := range []string{"table", "json", "yaml"} {
		got := invoke(t, newFake(), "", "snapshot", "inspect", file, "--output", o)
		if got.code != 0 || !strings.Contains(got.out, "coord-2") || !strings.Contains(got.out, "coord-3") {
			t.Errorf("exit %d %s%s", got.code, got.out, got.err)
		}
		for _, secret := range []string{"s3cret", "r3plication", "PRIVATE", "hash-of-a-secret"} {
			if strings.Contains(got.out, secret) {
				t.Errorf("%s shows %q", o, secret)
			}
		}
	}
}

// restore runs the verb as the given node, with this state directory.
func restore(t *testing.T, state, id, name, file, typed string) outcome {
	t.Helper()
	cfg := config.Default()
	cfg.Node.ID, cfg.Node.Name, cfg.StateDir = id, name, state
	cfg.Listen, cfg.API.Listen, cfg.PostgreSQL.Listen = "10.0.0.2:7400", "10.0.0.2:8008", "10.0.0.2:5432"
	path := filepath.Join(t.TempDir(), "matriarch.yml")
	if err := cfg.Save(path); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	p := &program{in: strings.NewReader(typed), out: &out, err: &errs, now: func() time.Time { return admintest.Now }}
	code := p.run(t.Context(), []string{"matriarch", "--config", path, "snapshot", "restore", file})
	return outcome{code, out.String(), errs.String()}
}

func TestSnapshotRestore(t *testing.T) {
	uuids := []string{"0ccccccc-0000-4000-8000-000000000001", "0ccccccc-0000-4000-8000-000000000002"}
	file, dir := saved(t, admintest.Coord2, fsm.NodeID(uuids[1])), filepath.Join(t.TempDir(), "state")
	if got := restore(t, dir, uuids[0], "stranger", file, "stranger\n"); got.code != 1 || !strings.Contains(got.err, "no node of the snapshot is called") {
		t.Errorf("exit %d %s", got.code, got.err)
	}
	if got := restore(t, dir, uuids[0], "coord-2", file, "coord-2\n"); got.code != 1 || !strings.Contains(got.err, "write that as node: id") {
		t.Errorf("exit %d %s", got.code, got.err)
	}
	if got := restore(t, dir, uuids[1], "coord-2", file, "yes\n"); got.code != 1 || !strings.Contains(got.err, "nothing was changed") {
		t.Errorf("exit %d %s", got.code, got.err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("an unconfirmed restore wrote something")
	}
	for round, wantInc := range []uint64{2, 3} { // on an empty host, and once more on what the first made
		got := restore(t, dir, uuids[1], "coord-2", file, "coord-2\n")
		if got.code != 0 {
			t.Fatalf("round %d: exit %d %s%s", round, got.code, got.out, got.err)
		}
		if aside := strings.Contains(got.out, "before-restore"); aside != (round == 1) {
			t.Errorf("round %d: old state set aside: %v\n%s", round, aside, got.out)
		}
		id, err := identity.Dir(dir).Load()
		if err != nil || id.Incarnation != wantInc || string(id.NodeID) != uuids[1] {
			t.Errorf("round %d: identity %+v, %v", round, id, err)
		}
		s, index, _, err := consensus.Inspect(filepath.Join(dir, "raft"))
		if err != nil || index != newFake().st.State.Index || len(s.Nodes) != len(newFake().st.State.Nodes) {
			t.Errorf("round %d: index %d, %v", round, index, err)
		}
	}
	if _, err := identity.Dir(dir).TLS(); err != nil {
		t.Errorf("certificate: %v", err)
	}
	if secret, err := identity.Dir(dir).Secret(identity.Replication); err != nil || secret != "r3plication" {
		t.Errorf("secret %q, %v", secret, err)
	}
}

func TestUpgradeFinish(t *testing.T) {
	f := newFake()
	if got := invoke(t, f, "", "upgrade", "finish"); got.code != 0 || !strings.Contains(got.out, "nothing to finish") || len(f.got) != 0 {
		t.Errorf("exit %d %s%s", got.code, got.out, got.err)
	}
	for _, id := range f.st.State.NodeIDs() {
		f.node(id, func(n *fsm.Node) { n.Protocol = fsm.Protocol })
	}
	golden(t, "upgrade-status", invoke(t, f, "", "upgrade", "status").out)
	if got := invoke(t, f, "", "list"); !strings.Contains(got.out, "`matriarch upgrade finish` turns the new one on") {
		t.Errorf("list says nothing of it: %s", got.out)
	}
	if got := invoke(t, f, "", "upgrade", "finish"); got.code != 0 || len(f.got) != 1 || f.got[0].GateSet.Gate != fsm.Protocol {
		t.Errorf("exit %d %s%s, asked %+v", got.code, got.out, got.err, f.got)
	}
	f.node(admintest.Work1, func(n *fsm.Node) { n.Protocol = 0 })
	if got := invoke(t, f, "", "upgrade", "finish"); !strings.Contains(got.out, "nothing to finish") {
		t.Errorf("with an older node: %s", got.out)
	}
}
