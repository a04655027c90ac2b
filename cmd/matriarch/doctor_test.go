package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"matriarch/internal/admin/admintest"
	"matriarch/internal/config"
	"matriarch/internal/doctor"
)

func examine(t *testing.T, facts doctor.Facts, args ...string) (outcome, doctor.Request) {
	t.Helper()
	t.Setenv("MATRIARCH_CONFIG", host(t))
	var out, errOut bytes.Buffer
	var asked doctor.Request
	p := &program{in: strings.NewReader(""), out: &out, err: &errOut, now: func() time.Time { return admintest.Now }, open: func(config.Config) (cluster, error) { return newFake(), nil }}
	p.gather = func(_ context.Context, q doctor.Request) doctor.Facts { asked = q; return facts }
	code := p.run(t.Context(), append([]string{"matriarch", "doctor"}, args...))
	return outcome{code, out.String(), errOut.String()}, asked
}

func TestDoctor(t *testing.T) {
	facts := doctor.Facts{ConfigFile: "/etc/matriarch/matriarch.yml", Config: config.Default().Complete(), User: "postgres", PostgreSQL: doctor.PostgreSQL{Err: "no PostgreSQL found"}}
	got, asked := examine(t, facts, "--peer", "10.9.9.9:7400", "--pg-bin", "/opt/bin")
	if got.code != 1 || got.err != "" {
		t.Errorf("exit code %d, stderr %q", got.code, got.err)
	}
	golden(t, "doctor", got.out)
	if asked.Config.PostgreSQL.BinDir != "/opt/bin" || asked.Reach[0].Addr != "10.9.9.9:7400" || len(asked.Reach) != 1+2*4 || len(asked.PeerClocks) != 4 || asked.AgentPID == 0 || !asked.Configured {
		t.Errorf("asked %+v", asked)
	}
	facts.PostgreSQL.Err = ""
	facts.Config.Citus.Enabled = false
	got, _ = examine(t, facts, "-o", "json")
	var v struct {
		Worst    doctor.Level
		Findings []doctor.Finding
	}
	if err := json.Unmarshal([]byte(got.out), &v); err != nil || got.code != 0 || v.Worst != doctor.Warn || len(v.Findings) < len(doctor.Checks()) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, _ := examine(t, facts, "extra"); got.code != 2 {
		t.Errorf("%+v", got)
	}
}
