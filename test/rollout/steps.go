package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// aim is the longest gap that an upgrade may make, on a quiet machine.
const aim = 250 * time.Millisecond

// scene is a run: the bed with one formation on it, and the writers.
type scene struct {
	*bed
	o       options
	inv     string
	nodes   []*host // of the formation
	writers []*writer

	upgraded bool
	new      *host // made, and not yet a node
}

// nothing says that no process of Matriarch's is left on a host.
const nothing = `test -z "$(pgrep -x postgres; pgrep -x matriarch)"`

// step is one row of the table.
type step struct {
	name string
	form form
	do   func(context.Context) (string, error)
}

// form is where a step belongs.
type form int

const (
	always form = iota
	full        // not in the reduced form
	named       // only when -only names it
)

func (b *bed) run(ctx context.Context, o options) error {
	s := &scene{bed: b, o: o}
	must := []step{{"hosts boot", always, s.bootAll}, {"check mode", full, s.checkMode}, {"site", always, s.site}}
	steps := []step{
		{"lint", always, s.lint},
		{"site without a host", full, s.siteWithout},
		{"site again", always, s.siteAgain},
		{"check mode again", named, s.checkAgain},
		{"hardening", full, s.hardening},
		{"writers", always, s.write},
		{"upgrade to no program", full, s.upgradeBroken},
		{"upgrade-matriarch", always, s.upgrade},
		{"upgrade again", named, s.upgradeAgain},
		{"upgrade-postgres-minor", full, s.minor},
		{"systemctl restart", full, s.restartAll},
		{"rotate-certificates", full, s.rotate},
		{"add-node that fails", full, s.addNodeFails},
		{"add-node", full, s.addNode},
		{"remove-node", full, s.removeNode},
		{"stop primary", always, s.stopPrimary},
		{"reboot primary", full, s.reboot},
		{"power cut primary", always, s.powerCut},
		{"hung agent of a standby", full, s.hungStandby},
		{"hung agent of a primary", full, s.hungPrimary},
		{"stop all in any order", full, s.stopAll},
		{"backup and restore", full, s.restore},
		{"data", always, s.check},
		{"secrets in output", always, func(ctx context.Context) (string, error) { return "none", s.secrets(ctx, s.nodes[0]) }},
		{"uninstall", full, s.uninstall},
		{"site after uninstall", named, s.siteAfter},
		{"trixie", full, s.trixie},
	}
	var errs []error
	for i, st := range append(must, steps...) {
		needed := st.form == always && i < len(must) || st.name == "writers"
		if !needed && !o.wants(st) {
			continue
		}
		began := time.Now()
		says, err := st.do(ctx)
		if err != nil {
			says = "FAILED: " + err.Error()
			errs = append(errs, fmt.Errorf("%s: %w", st.name, err))
		}
		b.table.row(st.name, time.Since(began), says)
		if err != nil && needed {
			break
		}
	}
	return errors.Join(errs...)
}

func (s *scene) bootAll(ctx context.Context) (string, error) {
	groups := map[string]int{"coord-1": 0, "coord-2": 0, "coord-3": 0}
	names := []string{"coord-1", "coord-2", "coord-3"}
	if !s.o.reduced {
		for _, n := range []string{"work1-1", "work1-2", "work2-1", "work2-2"} {
			names = append(names, n)
			groups[n] = int(n[4] - '0')
		}
	}
	for _, n := range names {
		s.nodes = append(s.nodes, s.add(n, "bookworm", groups[n]))
	}
	if err := each(s.nodes, (*host).lay); err != nil {
		return "", err
	}
	var err error
	if s.inv, err = s.inventory("inventory", s.nodes); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d hosts", len(s.nodes)), each(s.nodes, func(h *host) error { return h.boot(ctx) })
}

func (s *scene) lint(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "bash", "-c", "cd deploy/ansible && yamllint . && ansible-lint --offline -q --nocolor *.yml roles/matriarch")
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "ANSIBLE_HOME="+s.dir+"/ansible")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return "clean", err
}

func (s *scene) checkMode(ctx context.Context) (string, error) {
	if _, err := s.plain(ctx, s.inv, "site", "--check"); err != nil {
		return "", err
	}
	out, err := s.nodes[0].ssh(ctx, "ls /usr/bin/matriarch /var/lib/matriarch 2>/dev/null | wc -l")
	if err == nil && out != "0" {
		err = errors.New("it changed something")
	}
	return "nothing changed", err
}

func (s *scene) site(ctx context.Context) (string, error) {
	r, err := s.plain(ctx, s.inv, "site")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("changed=%d", r.changed), s.healthy(ctx, s.nodes[0])
}

// hardening is what systemd thinks of the unit: 0 is closed, 10 is open.
func (s *scene) hardening(ctx context.Context) (string, error) {
	out, err := s.nodes[0].ssh(ctx, "systemd-analyze security --no-pager --threshold=40 matriarch.service | tail -n 1")
	return strings.Trim(out, "→ "), err
}

func unchanged(r recap, err error) (string, error) {
	if err == nil && r.changed > 0 {
		err = fmt.Errorf("changed=%d", r.changed)
	}
	return "changed=0", err
}

func (s *scene) siteAgain(ctx context.Context) (string, error) {
	return unchanged(s.plain(ctx, s.inv, "site"))
}

func (s *scene) checkAgain(ctx context.Context) (string, error) {
	return unchanged(s.plain(ctx, s.inv, "site", "--check", "--diff"))
}

// siteWithout plays site while one host is gone: the others are served. The step after it plays it once more, with all.
func (s *scene) siteWithout(ctx context.Context) (string, error) {
	gone := s.nodes[len(s.nodes)-1]
	if err := gone.powerCut(); err != nil {
		return "", err
	}
	r, err := s.play(ctx, s.inv, "site")
	if err == nil || r.unreachable != 1 || r.failed != 0 || r.changed != 0 {
		return "", fmt.Errorf("want one host unreachable and the others well, not %+v (%w)", r, err)
	}
	return "one unreachable, others changed=0", errors.Join(gone.boot(ctx), s.healthy(ctx, s.nodes[0]))
}

func (s *scene) write(ctx context.Context) (string, error) {
	groups := []int{0}
	if !s.o.reduced {
		groups = []int{0, 1}
	}
	for _, g := range groups {
		w, err := s.bed.write(ctx, s.nodes[0], g)
		if err != nil {
			return "", err
		}
		s.writers = append(s.writers, w)
		if err := w.writesAgain(ctx, s.bed); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("groups %v, one write in %s", groups, writeEvery), nil
}

// measured does something while the writers write.
func (s *scene) measured(ctx context.Context, do func() error) (longest time.Duration, failed int, says string, err error) {
	for _, w := range s.writers {
		w.window()
	}
	if err = do(); err != nil {
		return
	}
	var parts []string
	for _, w := range s.writers {
		if err = w.writesAgain(ctx, s.bed); err != nil {
			return
		}
		gap, n, first := w.seen()
		longest, failed = max(longest, gap), failed+n
		part := fmt.Sprintf("group %d: gap %d ms, %d errors", w.group, gap.Milliseconds(), n)
		if n > 0 {
			part += " (" + first[:min(len(first), 80)] + ")"
		}
		parts = append(parts, part)
	}
	return longest, failed, strings.Join(parts, "; "), nil
}

// upgradeBroken plays the upgrade with a file that is no program: it ends at the first node, which still runs what it ran.
func (s *scene) upgradeBroken(ctx context.Context) (string, error) {
	broken := filepath.Join(s.dir, "broken")
	if err := os.WriteFile(broken, []byte("#!/bin/false\n"), 0o600); err != nil {
		return "", err
	}
	_, failed, says, err := s.measured(ctx, func() error {
		return s.untouched(ctx, func() error {
			r, err := s.play(ctx, s.inv, "upgrade-matriarch", "-e", "matriarch_binary="+broken)
			if err == nil || r.failed != 1 || r.changed != 0 {
				return fmt.Errorf("want one host failed and nothing changed, not %+v (%w)", r, err)
			}
			_, err = s.nodes[0].ssh(ctx, "matriarch version")
			return errors.Join(err, s.healthy(ctx, s.nodes[0]))
		})
	})
	if err == nil && failed > 0 {
		err = errors.New(says)
	}
	return "ends at the first node, nothing changed; " + says, err
}

func (s *scene) upgrade(ctx context.Context) (string, error) {
	longest, failed, says, err := s.measured(ctx, func() error {
		_, err := s.plain(ctx, s.inv, "upgrade-matriarch", "-e", "matriarch_binary="+filepath.Join(s.dir, "matriarch-new"))
		return err
	})
	if err != nil {
		return says, err
	}
	s.upgraded = true
	f, err := s.formation(ctx, s.nodes[0])
	for _, m := range f.Members {
		if m.Version != newVersion {
			err = errors.Join(err, fmt.Errorf("%s runs %s", m.Name, m.Version))
		}
	}
	if failed > 0 {
		err = errors.Join(err, errors.New(says))
	}
	if longest > aim {
		says += fmt.Sprintf(" (aim: %d ms)", aim.Milliseconds())
	}
	return says, err
}

func (s *scene) upgradeAgain(ctx context.Context) (string, error) {
	return unchanged(s.plain(ctx, s.inv, "upgrade-matriarch", "-e", "matriarch_binary="+filepath.Join(s.dir, "matriarch-new")))
}

// minor gives every host PostgreSQL's program as a new minor version does, and plays the upgrade: each server runs the new one afterwards,
// and a repetition leaves them alone.
func (s *scene) minor(ctx context.Context) (string, error) {
	if err := each(s.nodes, func(h *host) error {
		_, err := h.ssh(ctx, "cd /usr/lib/postgresql/15/bin && cp -p postgres postgres.new && mv postgres.new postgres")
		return err
	}); err != nil {
		return "", err
	}
	_, _, says, err := s.measured(ctx, func() error {
		_, err := s.plain(ctx, s.inv, "upgrade-postgres-minor")
		return err
	})
	if err != nil {
		return says, err
	}
	for _, h := range s.nodes {
		now, err := s.self(ctx, h)
		if err == nil {
			_, err = h.ssh(ctx, fmt.Sprintf("! readlink /proc/%d/exe | grep -q deleted", now.Postmaster))
		}
		if err != nil {
			return says, fmt.Errorf("%s runs the old program: %w", h.name, err)
		}
	}
	return says, s.untouched(ctx, func() error {
		_, err := unchanged(s.plain(ctx, s.inv, "upgrade-postgres-minor"))
		return err
	})
}

// restart restarts a node's agent by hand, and waits until the server's process and its lease are known to be what they were.
func (s *scene) restart(ctx context.Context, h *host) (took time.Duration, err error) {
	before, err := s.self(ctx, h)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := h.ssh(ctx, "systemctl restart matriarch"); err != nil {
		return 0, err
	}
	took = time.Since(began)
	return took, s.until(ctx, 30*time.Second, h.name+" has the process and the lease that it had", func() error {
		after, err := s.self(ctx, h)
		if err == nil && (after.served() != before.served() || after.Processes.Agent == before.Processes.Agent) {
			err = fmt.Errorf("%s, and was %s", after.served(), before.served())
		}
		return err
	})
}

func (s *scene) restartAll(ctx context.Context) (string, error) {
	var longest time.Duration
	_, failed, says, err := s.measured(ctx, func() error {
		for _, h := range s.nodes {
			took, err := s.restart(ctx, h)
			if err != nil {
				return err
			}
			longest = max(longest, took)
		}
		return nil
	})
	if err == nil && failed > 0 {
		err = errors.New(says)
	}
	return fmt.Sprintf("%s; longest restart %.1f s", says, longest.Seconds()), err
}

// other is a node that is not the one about to go.
func (s *scene) other(but *host) *host {
	for _, h := range s.nodes {
		if h != but {
			return h
		}
	}
	return nil
}
