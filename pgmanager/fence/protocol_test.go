package fence

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	goldenTime     = time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC)
	goldenDeadline = Deadline{Instance: "ab12", Epoch: Epoch{Inc: 1, N: 17}, Raw: 5_000_000_001, Boot: 6_000_000_002}
)

// golden holds the released bytes of every message. They are a contract with agents and sentinels that run already: add, never change.
var golden = []struct {
	name string
	msg  any
	line string
}{
	{"hello", Request{ID: 1, Op: OpHello}, `{"id":1,"op":"hello"}`},
	{"ping", Request{ID: 2, Op: OpPing}, `{"id":2,"op":"ping"}`},
	{"status", Request{ID: 3, Op: OpStatus}, `{"id":3,"op":"status"}`},
	{
		"start",
		Request{ID: 4, Op: OpStart, Start: &StartRequest{
			Argv: []string{"/bin/postgres", "-D", "/d"}, Env: []string{"A=b"}, Dir: "/d", UID: 101, GID: 104, Groups: []uint32{7}, LogFile: "/l",
		}},
		`{"id":4,"op":"start","start":{"argv":["/bin/postgres","-D","/d"],"env":["A=b"],"dir":"/d","uid":101,"gid":104,"groups":[7],"log_file":"/l"}}`,
	},
	{
		"deadline",
		Request{ID: 5, Op: OpDeadline, Deadline: &goldenDeadline},
		`{"id":5,"op":"deadline","deadline":{"instance":"ab12","epoch":{"inc":1,"n":17},"raw_ns":5000000001,"boot_ns":6000000002}}`,
	},
	{"promote", Request{ID: 6, Op: OpPromote, Epoch: &Epoch{Inc: 1, N: 17}}, `{"id":6,"op":"promote","epoch":{"inc":1,"n":17}}`},
	{
		"stop",
		Request{ID: 7, Op: OpStop, Stop: &StopRequest{Mode: Fast, TimeoutMS: 3000}},
		`{"id":7,"op":"stop","stop":{"mode":"fast","timeout_ms":3000}}`,
	},
	{
		"stop immediate",
		Request{ID: 7, Op: OpStop, Stop: &StopRequest{Mode: Immediate}},
		`{"id":7,"op":"stop","stop":{"mode":"immediate","timeout_ms":0}}`,
	},
	{"kill", Request{ID: 8, Op: OpKill}, `{"id":8,"op":"kill"}`},
	{
		"adopt",
		Request{ID: 9, Op: OpAdopt, Adopt: &AdoptRequest{PID: 42, Dir: "/d", GraceMS: 9000}},
		`{"id":9,"op":"adopt","adopt":{"pid":42,"dir":"/d","grace_ms":9000}}`,
	},
	{"shutdown", Request{ID: 10, Op: OpShutdown}, `{"id":10,"op":"shutdown"}`},
	{"done", Response{ID: 2}, `{"id":2}`},
	{
		"greeting",
		Response{ID: 1, Version: "1.0.0", Status: &Status{Instance: "ab12", SentinelPID: 7, Role: RoleNone}},
		`{"id":1,"version":"1.0.0","status":{"instance":"ab12","sentinel_pid":7,"postmaster":0,"role":"none","epoch":{"inc":0,"n":0},"weak":false,"left":0}}`,
	},
	{
		"full status",
		Response{ID: 3, Status: &Status{
			Instance: "ab12", SentinelPID: 7, Postmaster: 42, StartedAt: goldenTime, Role: RolePrimary, Epoch: Epoch{Inc: 1, N: 17},
			Deadline: &goldenDeadline, Weak: true, Left: 9,
			LastExit: &Exit{Code: -1, Signal: 9, At: goldenTime, Fenced: true, Reason: "why"},
		}},
		`{"id":3,"status":{"instance":"ab12","sentinel_pid":7,"postmaster":42,"started_at":"2026-11-22T20:30:00Z","role":"primary",` +
			`"epoch":{"inc":1,"n":17},"deadline":{"instance":"ab12","epoch":{"inc":1,"n":17},"raw_ns":5000000001,"boot_ns":6000000002},` +
			`"weak":true,"left":9,"last_exit":{"code":-1,"signal":9,"at":"2026-11-22T20:30:00Z","fenced":true,"reason":"why"}}}`,
	},
	{"watchdog", Request{ID: 12, Op: OpWatchdog, Watchdog: &WatchdogRequest{Mode: WatchdogRequired, Device: "/dev/watchdog"}}, `{"id":12,"op":"watchdog","watchdog":{"mode":"required","device":"/dev/watchdog"}}`},
	{"renounce", Request{ID: 13, Op: OpRenounce, Epoch: &Epoch{Inc: 1, N: 17}}, `{"id":13,"op":"renounce","epoch":{"inc":1,"n":17}}`},
	{
		"status of the watchdog",
		Response{ID: 14, Status: &Status{
			Instance: "ab12", SentinelPID: 7, Role: RoleNone,
			Watchdog: &WatchdogStatus{WatchdogRequest: WatchdogRequest{Mode: WatchdogAutomatic, Device: "/dev/w"}, State: WatchdogFailed, TimeoutMS: 2000, Problem: "why"},
		}},
		`{"id":14,"status":{"instance":"ab12","sentinel_pid":7,"postmaster":0,"role":"none","epoch":{"inc":0,"n":0},"weak":false,"left":0,` +
			`"watchdog":{"mode":"automatic","device":"/dev/w","state":"failed","timeout_ms":2000,"problem":"why"}}}`,
	},
	{"refusal", Response{ID: 4, Code: ErrNotStandby, Error: "why"}, `{"id":4,"code":"not_standby","error":"why"}`},
	{
		"exited",
		Event{Kind: Exited, Reason: "why", Status: &Status{Instance: "ab12", SentinelPID: 7, Role: RoleNone}},
		`{"event":"exited","reason":"why","status":{"instance":"ab12","sentinel_pid":7,"postmaster":0,"role":"none","epoch":{"inc":0,"n":0},"weak":false,"left":0}}`,
	},
	{
		"role",
		Event{Kind: RoleChange, Status: &Status{Instance: "ab12", SentinelPID: 7, Postmaster: 42, Role: RoleStandby, Left: 1}},
		`{"event":"role","status":{"instance":"ab12","sentinel_pid":7,"postmaster":42,"role":"standby","epoch":{"inc":0,"n":0},"weak":false,"left":1}}`,
	},
	{"fenced", Event{Kind: Fenced, Reason: "why"}, `{"event":"fenced","reason":"why"}`},
	{"superseded", Event{Kind: Superseded, Reason: "why"}, `{"event":"superseded","reason":"why"}`},
}

func TestGoldenBytes(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			b, err := encode(g.msg)
			must(t, err)
			if diff := cmp.Diff(g.line+"\n", string(b)); diff != "" {
				t.Errorf("encoded (-released +now):\n%s", diff)
			}
			back := reflect.New(reflect.TypeOf(g.msg))
			must(t, json.Unmarshal([]byte(g.line), back.Interface()))
			if diff := cmp.Diff(g.msg, back.Elem().Interface()); diff != "" {
				t.Errorf("decoded (-meant +read):\n%s", diff)
			}
		})
	}
}

// Codes are part of the protocol as well: agents act on them.
func TestGoldenCodes(t *testing.T) {
	got := []Code{
		ErrInvalid, ErrUnsupported, ErrHello, ErrRunning, ErrNotRunning, ErrNotStandby, ErrInstance, ErrStale, ErrDeadline, ErrEpoch, ErrIdentity, ErrWatchdog, ErrFailed,
	}
	want := []Code{
		"invalid", "unsupported", "hello_first", "running", "not_running", "not_standby", "instance", "stale", "no_deadline", "epoch", "not_that_one", "watchdog", "failed",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEveryOperationIsGolden(t *testing.T) {
	seen := map[Op]bool{}
	for _, g := range golden {
		if r, ok := g.msg.(Request); ok {
			seen[r.Op] = true
		}
	}
	for _, op := range []Op{OpHello, OpPing, OpStart, OpDeadline, OpPromote, OpStop, OpKill, OpAdopt, OpStatus, OpShutdown, OpWatchdog, OpRenounce} {
		if !seen[op] {
			t.Errorf("no golden bytes for %s", op)
		}
	}
}

func TestEncodeRefusesLongLines(t *testing.T) {
	if _, err := encode(Request{Op: OpStart, Start: &StartRequest{Env: []string{strings.Repeat("x", MaxLine)}}}); err == nil {
		t.Error("a line over the limit was encoded")
	}
}

func TestErrorIsItsCode(t *testing.T) {
	err := refuse(ErrRunning, "pid %d", 3)
	if !errors.Is(err, ErrRunning) || errors.Is(err, ErrStale) || err.Error() != "pid 3" {
		t.Errorf("%#v", err)
	}
}
