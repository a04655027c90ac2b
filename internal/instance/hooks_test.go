package instance

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
	"matriarch/internal/agent"
	"matriarch/internal/config"
)

// ran is a runner that notes what it is to run; those named in fails fail.
type ran struct {
	names []string
	env   map[string][]string
	fails string
	told  chan string
}

func (r *ran) RunHook(_ context.Context, name string, _, env []string) error {
	r.names = append(r.names, name)
	r.env[name] = env
	if r.told != nil {
		r.told <- name
	}
	if name == r.fails {
		return errors.New("no")
	}
	return nil
}

func epochOf(n uint64) fsm.Epoch { return fsm.Epoch{Inc: 1, N: n} }

func rosterOf(grants []fsm.Grant, ended bool) agent.Roster {
	r := agent.Roster{Self: "b", Group: fsm.Group{ID: 3, Epoch: grants[len(grants)-1].Epoch, Grants: grants}}
	if ended {
		r.Group.Ended = &fsm.End{}
	}
	for _, id := range []fsm.NodeID{"a", "b", "c"} {
		r.Nodes = append(r.Nodes, fsm.Node{ID: id, Name: "host-" + string(id), Postgres: string(id) + ":5432"})
	}
	r.Members = r.Nodes
	return r
}

func TestPrePromote(t *testing.T) {
	all := config.Hooks{PrePromote: []string{"/p"}, FenceCommand: []string{"/f"}, FenceFailure: "refuse", Timeout: time.Second}
	lenient := all
	lenient.FenceFailure = "ignore"
	mine := fsm.Grant{Epoch: epochOf(9), Holder: "b"}
	crashed := []fsm.Grant{{Epoch: epochOf(8), Holder: "a", Timeline: 4}, mine}
	for _, c := range []struct {
		name   string
		cfg    config.Hooks
		grants []fsm.Grant
		ended  bool
		fails  string
		want   []string
		old    string
		failed bool
	}{
		{"nothing configured", config.Hooks{Timeout: time.Second}, crashed, false, "", nil, "", false},
		{"after a failure", all, crashed, false, "", []string{"fence_command", "pre_promote"}, "host-a", false},
		{"after a switchover", all, crashed, true, "", []string{"pre_promote"}, "", false},
		{"this node again", all, []fsm.Grant{{Epoch: epochOf(8), Holder: "b", Timeline: 4}, mine}, false, "", []string{"pre_promote"}, "", false},
		{"a candidate before gave up", all, []fsm.Grant{{Epoch: epochOf(7), Holder: "a", Timeline: 4}, {Epoch: epochOf(8), Holder: "c"}, mine}, false, "", []string{"fence_command", "pre_promote"}, "host-a", false},
		{"the fence fails", all, crashed, false, "fence_command", []string{"fence_command"}, "host-a", true},
		{"the fence fails, ignored", lenient, crashed, false, "fence_command", []string{"fence_command", "pre_promote"}, "host-a", false},
		{"the check fails", all, crashed, true, "pre_promote", []string{"pre_promote"}, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &ran{env: map[string][]string{}, fails: c.fails}
			err := NewHooks(t.Context(), c.cfg, r, slog.New(slog.DiscardHandler)).PrePromote(t.Context(), rosterOf(c.grants, c.ended), epochOf(9))
			if (err != nil) != c.failed {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(c.want, r.names); diff != "" {
				t.Error(diff)
			}
			if c.old != "" && !slices.Contains(r.env["fence_command"], "MATRIARCH_OLD_PRIMARY="+c.old) {
				t.Errorf("environment %v", r.env["fence_command"])
			}
			if e := r.env["pre_promote"]; e != nil && !strings.Contains(strings.Join(e, " "), "MATRIARCH_NODE=host-b") {
				t.Errorf("environment %v", e)
			}
		})
	}
}

func TestRoleChanged(t *testing.T) {
	r := &ran{env: map[string][]string{}, told: make(chan string)}
	h := NewHooks(t.Context(), config.Hooks{OnRoleChange: []string{"/r"}, Timeout: time.Second}, r, slog.New(slog.DiscardHandler))
	roster := rosterOf([]fsm.Grant{{Epoch: epochOf(9), Holder: "b"}}, false)
	for range 100 { // nobody takes them: it must not block
		h.RoleChanged(roster, "primary", epochOf(9))
	}
	if got := <-r.told; got != "on_role_change" {
		t.Errorf("ran %s", got)
	}
}
