package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"matriarch/internal/admin"
	"matriarch/internal/demo"
	"matriarch/internal/identity"
)

// matriarch is a formation of the built program.
type matriarch struct {
	exe, dir, pgBin string
	*demo.Demo
}

func newMatriarch(o options) *matriarch {
	dir := filepath.Join(o.dir, "matriarch")
	return &matriarch{exe: o.exe, dir: dir, pgBin: o.pgBin, Demo: demo.New(demo.Config{Dir: dir, Exe: o.exe, PGBin: o.pgBin, Out: io.Discard})}
}

// command runs a verb as an operator would, through a node that no scenario touches.
func (m *matriarch) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, m.exe, append([]string{"--config", filepath.Join(m.dir, "work2-1", "matriarch.yml")}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("matriarch %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

func (m *matriarch) describe(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, m.exe, "version").Output()
	if err != nil {
		return "", fmt.Errorf("matriarch version: %w", err)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return first + ", default settings (a standby confirms every commit)", nil
}

func (m *matriarch) up(ctx context.Context) error {
	if _, err := m.Up(ctx, false); err != nil {
		return err
	}
	return m.whole(ctx)
}

func (m *matriarch) down(ctx context.Context) error {
	if !m.Exists() {
		return nil
	}
	return m.Down(ctx, false)
}

func (m *matriarch) hosts(group int) []string {
	var out []string
	for _, n := range m.Nodes() {
		if n.Group == group {
			out = append(out, n.IP+":6432")
		}
	}
	return out
}

func (m *matriarch) dsn(hosts []string) (string, error) {
	for _, n := range m.Nodes() {
		if password, err := identity.Dir(filepath.Join(m.dir, n.Name, "state")).Secret(identity.Superuser); err == nil {
			return clientDSN(hosts, password), nil
		}
	}
	return "", errors.New("the superuser's password is in no node's state directory")
}

func (m *matriarch) formation(ctx context.Context) (admin.Formation, error) {
	out, err := m.command(ctx, "list", "--output", "json")
	if err != nil {
		return admin.Formation{}, err
	}
	var f admin.Formation
	if err := json.Unmarshal(out, &f); err != nil {
		return f, fmt.Errorf("read the list: %w", err)
	}
	return f, nil
}

func (m *matriarch) primary(ctx context.Context, group int) (string, error) {
	f, err := m.formation(ctx)
	if err != nil {
		return "", err
	}
	for _, g := range f.Groups {
		if int(g.ID) == group && g.Primary != "" {
			return g.Primary, nil
		}
	}
	return "", fmt.Errorf("group %d has no primary", group)
}

func (m *matriarch) switchover(ctx context.Context, group int) (switched, error) {
	out, err := m.command(ctx, "switchover", "--group", fmt.Sprint(group), "--yes", "--output", "json")
	if err != nil {
		return switched{}, err
	}
	var s switched
	if err := json.Unmarshal(out, &s); err != nil {
		return s, fmt.Errorf("read the switchover: %w", err)
	}
	return s, nil
}

func (m *matriarch) kill(_ context.Context, node, only string) error { return m.Kill(node, only) }
func (m *matriarch) start(_ context.Context, node string) error      { return m.Start(node) }

func (m *matriarch) freeze(ctx context.Context, node string, hold time.Duration) error {
	all, err := m.Status(ctx)
	if err != nil {
		return err
	}
	for _, n := range all {
		if n.Name == node && n.Pids.Agent != 0 {
			return freezeAll(ctx, hold, func(p process) bool { return p.pid == n.Pids.Agent })
		}
	}
	return fmt.Errorf("node %s has no agent", node)
}

func (m *matriarch) votes(ctx context.Context, node string) (bool, error) {
	f, err := m.formation(ctx)
	return slices.Contains(f.Raft.Voters, node), err
}

func (m *matriarch) lead(ctx context.Context, node string) error {
	if _, err := m.command(ctx, "transfer-leader", node); err != nil {
		return err
	}
	return until(ctx, "wait for the leader", wholeWait, func(ctx context.Context) error {
		f, err := m.formation(ctx)
		if err == nil && f.Raft.Leader != node {
			err = fmt.Errorf("%s leads", f.Raft.Leader)
		}
		return err
	})
}

func (m *matriarch) whole(ctx context.Context) error {
	return until(ctx, "wait for the formation", wholeWait, func(ctx context.Context) error {
		f, err := m.formation(ctx)
		switch {
		case err != nil:
			return err
		case !f.Healthy:
			return errors.New(strings.Join(f.Troubles, "; "))
		case len(f.Members) != len(m.Nodes()):
			return fmt.Errorf("%d of %d nodes", len(f.Members), len(m.Nodes()))
		}
		for _, g := range f.Groups {
			if len(g.Joint) > 0 || g.Operation != nil {
				return fmt.Errorf("group %d is being changed", g.ID)
			}
		}
		return nil
	})
}

// pauseParts reads the line that the leader writes when it lets the clients go on.
func (m *matriarch) pauseParts(since time.Time) ([]step, error) {
	for _, file := range m.logs() {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
		for line := range bytes.Lines(b) {
			if parts := pauseLine(line, since); parts != nil {
				return parts, nil
			}
		}
	}
	return nil, nil
}

func pauseLine(line []byte, since time.Time) []step {
	if !bytes.Contains(line, []byte(`"pause over"`)) {
		return nil
	}
	var l struct {
		Time                    time.Time `json:"time"`
		Lock, Rows, Write, Held string
	}
	if err := json.Unmarshal(line, &l); err != nil || l.Time.Before(since) {
		return nil
	}
	var out []step
	for _, p := range []struct{ name, took string }{{"lock", l.Lock}, {"rows", l.Rows}, {"write", l.Write}, {"held", l.Held}} {
		d, err := time.ParseDuration(p.took)
		if err != nil {
			return nil
		}
		out = append(out, step{p.name, ms(d)})
	}
	return out
}

func (m *matriarch) logs() []string {
	var out []string
	for _, n := range m.Nodes() {
		if file := filepath.Join(m.dir, n.Name, "matriarch.log"); exists(file) {
			out = append(out, file)
		}
	}
	return out
}

func exists(file string) bool { _, err := os.Stat(file); return err == nil }
