package instance

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"matriarch/fsm"
	"matriarch/internal/agent"
	"matriarch/internal/config"
)

// runner runs one command; pgmanager.Manager is one.
type runner interface {
	RunHook(ctx context.Context, name string, argv, env []string) error
}

// Hooks implements agent.Hooks by the configuration.
type Hooks struct {
	cfg  config.Hooks
	run  runner
	log  *slog.Logger
	news chan notice
}

// notice is one change of role to be told.
type notice struct {
	env []string
}

// NewHooks makes the hooks. Those that tell of changes of role run one after the other until ctx ends.
func NewHooks(ctx context.Context, cfg config.Hooks, run runner, log *slog.Logger) *Hooks {
	h := &Hooks{cfg: cfg, run: run, log: log, news: make(chan notice, 16)}
	if len(cfg.OnRoleChange) > 0 {
		go h.tell(ctx)
	}
	return h
}

// PrePromote implements agent.Hooks: first the fence of the primary before, then the operator's own check.
func (h *Hooks) PrePromote(ctx context.Context, r agent.Roster, e fsm.Epoch) error {
	env := environment(r, e)
	if old, ok := oldPrimary(r); ok && len(h.cfg.FenceCommand) > 0 {
		err := h.one(ctx, "fence_command", h.cfg.FenceCommand, append(env, old...))
		if err != nil && (h.cfg.FenceFailure != "ignore" || ctx.Err() != nil) {
			return err
		}
		if err != nil {
			h.log.Error("fence_command failed, promoting all the same", "error", err)
		}
	}
	if len(h.cfg.PrePromote) == 0 {
		return nil
	}
	return h.one(ctx, "pre_promote", h.cfg.PrePromote, env)
}

func (h *Hooks) one(ctx context.Context, name string, argv, env []string) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()
	return h.run.RunHook(ctx, name, argv, env)
}

// RoleChanged implements agent.Hooks.
func (h *Hooks) RoleChanged(r agent.Roster, role string, e fsm.Epoch) {
	if len(h.cfg.OnRoleChange) == 0 {
		return
	}
	select {
	case h.news <- notice{append(environment(r, e), "MATRIARCH_ROLE="+role)}:
	default:
		h.log.Warn("on_role_change is left out: earlier runs have not ended", "role", role)
	}
}

func (h *Hooks) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-h.news:
			if err := h.one(ctx, "on_role_change", h.cfg.OnRoleChange, n.env); err != nil && ctx.Err() == nil {
				h.log.Error("on_role_change failed", "error", err)
			}
		}
	}
}

// environment tells a hook where it runs and why.
func environment(r agent.Roster, e fsm.Epoch) []string {
	env := []string{"MATRIARCH_GROUP=" + strconv.Itoa(int(r.Group.ID)), "MATRIARCH_EPOCH=" + e.String(), "MATRIARCH_TIME=" + time.Now().UTC().Format(time.RFC3339)}
	for _, n := range r.Members {
		if n.ID == r.Self {
			env = append(env, "MATRIARCH_NODE="+n.Name, "MATRIARCH_POSTGRES="+n.Postgres)
		}
	}
	return env
}

// oldPrimary describes the last primary whose end nobody has seen: one that is another node, and has not given its lease back in good order.
func oldPrimary(r agent.Roster) ([]string, bool) {
	if r.Group.Ended != nil {
		return nil, false
	}
	for i, g := range slices.Backward(r.Group.Grants) {
		if g.Timeline == 0 && g.Epoch != r.Group.Epoch && i > 0 {
			continue // never promoted
		}
		if g.Epoch == r.Group.Epoch {
			continue // ours
		}
		if g.Holder == r.Self {
			return nil, false
		}
		env := []string{"MATRIARCH_OLD_PRIMARY=" + string(g.Holder), "MATRIARCH_OLD_EPOCH=" + g.Epoch.String()}
		for _, n := range r.Nodes {
			if n.ID == g.Holder {
				env[0] = "MATRIARCH_OLD_PRIMARY=" + n.Name
				env = append(env, "MATRIARCH_OLD_POSTGRES="+n.Postgres, "MATRIARCH_OLD_PEER="+n.Peer, fmt.Sprintf("MATRIARCH_OLD_ZONE=%s", n.Zone))
			}
		}
		return env, true
	}
	return nil, false
}
