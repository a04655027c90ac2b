package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/internal/admin/admintest"
	"matriarch/internal/config"
	"matriarch/internal/doctor"
	"matriarch/internal/identity"
)

// planted are secrets in every place where a bundle could pick one up.
var planted = []string{"hunter22-superuser", "hunter22-replication", "hunter22-aws", "hunter22-in-sql", "hunter22-conninfo", "hunter22-journal", "hunter22-hash", "MHcCAQEEIHunter22"}

func supportHost(t *testing.T) (file string, cfg config.Config) {
	t.Helper()
	file = host(t)
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg.PostgreSQL.Parameters = map[string]string{"archive_command": "AWS_SECRET_ACCESS_KEY=hunter22-aws push %p", "work_mem": "4MB"}
	cfg.API.Listen, cfg.API.Advertise = "127.0.0.1:1", "" // nobody listens there
	dir := identity.Dir(cfg.StateDir)
	log := "LOG:  statement: ALTER ROLE app PASSWORD 'hunter22-in-sql'\nFATAL: host=h password=hunter22-conninfo user=r\nLOG: checkpoint complete, superuser has hunter22-superuser\n"
	if err := errors.Join(
		cfg.Save(file), dir.SaveSecrets(map[string]string{identity.Superuser: "hunter22-superuser", identity.Replication: "hunter22-replication"}),
		dir.SaveMaterial(identity.Material{CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIHunter22\n-----END EC PRIVATE KEY-----\n")}),
		os.WriteFile(cfg.PostgreSQL.LogFile, []byte(log), 0o600), os.WriteFile(filepath.Join(cfg.StateDir, "sentinel.log"), []byte(`{"password":"hunter22-replication"}`), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return file, cfg
}

// unpack reads an archive.
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

func bundleOf(t *testing.T, f *fake, args ...string) (outcome, map[string]string, string) {
	t.Helper()
	config1, _ := supportHost(t)
	t.Setenv("MATRIARCH_CONFIG", config1)
	file := filepath.Join(t.TempDir(), "s.tar.gz")
	var out, errOut bytes.Buffer
	p := &program{in: strings.NewReader(""), out: &out, err: &errOut, now: func() time.Time { return admintest.Now }, open: func(config.Config) (cluster, error) { return f, f.err }}
	p.gather = func(context.Context, doctor.Request) doctor.Facts { return doctor.Facts{} }
	code := p.run(t.Context(), append([]string{"matriarch", "support-bundle", file}, args...))
	return outcome{code, out.String(), errOut.String()}, unpack(t, file), file
}

func TestSupportBundle(t *testing.T) {
	f := newFake()
	f.support = map[string]string{"coord-1": "a line\npassword=hunter22-journal\n", "work1-1": "b", "work1-2": "c"}
	f.st.State.Tokens = map[string]fsm.Token{"t1": {Hash: "hunter22-hash"}}
	got, files, file := bundleOf(t, f)
	if got.code != 0 || !strings.Contains(got.err, "ask coord-3 for its files") || !strings.Contains(got.out, file) {
		t.Errorf("%+v", got)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	for name, text := range files {
		for _, s := range planted {
			if strings.Contains(text, s) {
				t.Errorf("%s holds %s:\n%s", name, s, text)
			}
		}
	}
	for name, want := range map[string]string{
		"formation/list.txt": "coord-1", "formation/state.json": `"cluster"`, "formation/formation.json": `"members"`, "formation/history.json": "{", "formation/explain-group-1.txt": "group 1",
		"nodes/coord-2/doctor.txt": "fail", "nodes/coord-2/matriarch.yml": "work_mem: 4MB", "nodes/coord-2/version.txt": version, "nodes/coord-2/logs/postgresql.log": "checkpoint complete",
		"nodes/coord-2/logs/sentinel.log": "[removed]", "nodes/coord-2/errors.txt": "metrics.txt: ", "nodes/coord-2/status.json": `"node"`, "nodes/coord-2/explain.txt": "coord-2: ",
		"nodes/coord-1/logs/journal.txt": "a line\npassword=[removed]", "nodes/work1-2/status.json": `"name"`, "missing.txt": "coord-3",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s: no %q in %q", name, want, files[name])
		}
	}
}

func TestSupportBundleOfThisHostOnly(t *testing.T) {
	f := newFake()
	_, files, _ := bundleOf(t, f, "--local")
	for name := range files {
		if strings.HasPrefix(name, "nodes/") && !strings.HasPrefix(name, "nodes/coord-2/") {
			t.Errorf("asked another: %s", name)
		}
	}
	broken := newFake()
	broken.err = errors.New("no node of the cluster answered")
	got, files, file := bundleOf(t, broken)
	if got.code != 0 || !strings.Contains(files["missing.txt"], "no node of the cluster answered") || files["nodes/coord-2/matriarch.yml"] == "" {
		t.Errorf("%+v, %v", got, files["missing.txt"])
	}
	if got := invoke(t, newFake(), "", "support-bundle", file); got.code != 1 || !strings.Contains(got.err, "exists") {
		t.Errorf("overwritten: %+v", got)
	}
}
