package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// orderly stops a node and looks at how it went down.
const orderly = `systemctl stop matriarch && ` + nothing + ` && test "$(systemctl show -p Result --value matriarch)" = success && tail -n 1 /var/lib/matriarch/postgresql.log | grep -q 'database system is shut down'`

// inTurn does something on one host after the other and says how long the slowest took.
func inTurn(hosts []*host, do func(*host) error) (longest time.Duration, err error) {
	for _, h := range hosts {
		began := time.Now()
		if err := do(h); err != nil {
			return longest, err
		}
		longest = max(longest, time.Since(began))
	}
	return longest, nil
}

// stopAll stops the whole formation and starts it again: at once, the primaries as they come; then in turn, primaries first and started last
// to first; then the other way round. The last ones of each turn have no majority to ask.
func (s *scene) stopAll(ctx context.Context) (string, error) {
	stop := func(h *host) error { _, err := h.ssh(ctx, orderly); return err }
	start := func(h *host) error { _, err := h.ssh(ctx, "systemctl start matriarch"); return err }
	began := time.Now()
	if err := each(s.nodes, stop); err != nil {
		return "", fmt.Errorf("at once: %w", err)
	}
	stopped := time.Since(began)
	began = time.Now()
	if err := errors.Join(each(s.nodes, start), s.healthy(ctx, s.nodes[0])); err != nil {
		return "", fmt.Errorf("at once: %w", err)
	}
	says := fmt.Sprintf("at once: down after %.1f s, healthy %.1f s after the start", stopped.Seconds(), time.Since(began).Seconds())

	for _, first := range []string{"primaries", "standbys"} {
		order, err := s.primariesFirst(ctx)
		if err != nil {
			return says, err
		}
		if first == "standbys" {
			slices.Reverse(order)
		}
		longest, err := inTurn(order, stop)
		if err != nil {
			return says, fmt.Errorf("%s first: %w", first, err)
		}
		slices.Reverse(order)
		began = time.Now()
		if _, err := inTurn(order, start); err != nil {
			return says, fmt.Errorf("%s first: %w", first, err)
		}
		if err := s.healthy(ctx, s.nodes[0]); err != nil {
			return says, fmt.Errorf("%s first: %w", first, err)
		}
		says += fmt.Sprintf("; %s first: longest stop %.1f s, healthy %.1f s after the first start", first, longest.Seconds(), time.Since(began).Seconds())
	}
	for _, w := range s.writers {
		if err := w.writesAgain(ctx, s.bed); err != nil {
			return says, err
		}
	}
	return says, nil
}

func (s *scene) primariesFirst(ctx context.Context) ([]*host, error) {
	f, err := s.formation(ctx, s.nodes[0])
	if err != nil {
		return nil, err
	}
	var primaries, standbys []*host
	for _, h := range s.nodes {
		if slices.ContainsFunc(f.Groups, func(g group) bool { return g.Primary == h.name }) {
			primaries = append(primaries, h)
		} else {
			standbys = append(standbys, h)
		}
	}
	return append(primaries, standbys...), nil
}

// restore saves the control plane, loses it on every node, and rebuilds it from the file; the data stays where it is.
func (s *scene) restore(ctx context.Context) (string, error) {
	if _, err := s.plain(ctx, s.inv, "backup-control-plane", "-e", "matriarch_backup_dir="+s.dir+"/backups"); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(s.dir, "backups", "*.snapshot"))
	if err != nil || len(files) != 1 {
		return "", fmt.Errorf("want one file, not %q (%w)", files, err)
	}
	if st, err := os.Stat(files[0]); err != nil || st.Mode().Perm() != 0o600 {
		return "", fmt.Errorf("the file is readable by others (%w)", err)
	}
	if err := each(s.nodes, func(h *host) error {
		_, err := h.ssh(ctx, "systemctl stop matriarch && mv /var/lib/matriarch/raft /root/raft.lost")
		return err
	}); err != nil {
		return "", err
	}
	began := time.Now()
	if _, err := s.plain(ctx, s.inv, "restore-control-plane", "-e", "matriarch_backup="+files[0], "-e", "matriarch_confirm=restore"); err != nil {
		return "", err
	}
	if err := s.healthy(ctx, s.nodes[0]); err != nil {
		return "", err
	}
	for _, w := range s.writers {
		if err := w.writesAgain(ctx, s.bed); err != nil {
			return "", err
		}
	}
	_, err = s.nodes[0].ssh(ctx, "! ls /var/lib/matriarch/secrets/*.snapshot 2>/dev/null")
	return fmt.Sprintf("restored in %.0f s, no copy left on the hosts", time.Since(began).Seconds()), err
}

func (s *scene) check(ctx context.Context) (string, error) {
	var parts []string
	for _, w := range s.writers {
		says, err := w.check(ctx)
		if err != nil {
			return "", err
		}
		parts = append(parts, says)
	}
	return strings.Join(parts, "; "), nil
}

func (s *scene) uninstall(ctx context.Context) (string, error) {
	if _, err := s.plain(ctx, s.inv, "uninstall", "-e", "matriarch_confirm=yes"); err == nil {
		return "", errors.New("it went on without the confirmation")
	}
	if err := s.healthy(ctx, s.nodes[0]); err != nil {
		return "", err
	}
	if _, err := s.plain(ctx, s.inv, "uninstall", "-e", "matriarch_confirm=uninstall"); err != nil {
		return "", err
	}
	if err := each(s.nodes, func(h *host) error {
		_, err := h.ssh(ctx, nothing+" && test ! -e /usr/bin/matriarch && test -f /var/lib/matriarch/pgdata/PG_VERSION && test -f /etc/matriarch/matriarch.yml")
		return err
	}); err != nil {
		return "", err
	}
	return "refused without the word; data and configuration stay", nil
}

// siteAfter brings back what was removed: the formation goes on with its data.
func (s *scene) siteAfter(ctx context.Context) (string, error) {
	r, err := s.plain(ctx, s.inv, "site", "-e", "matriarch_binary="+s.program())
	if err != nil {
		return "", err
	}
	if err := s.healthy(ctx, s.nodes[0]); err != nil {
		return "", err
	}
	says, err := s.check(ctx)
	return fmt.Sprintf("changed=%d; %s", r.changed, says), err
}

// trixie is a formation of one host with another distribution and another PostgreSQL.
func (s *scene) trixie(ctx context.Context) (string, error) {
	h := s.add("alone", "trixie", 0)
	if err := h.lay(); err != nil {
		return "", err
	}
	if err := h.boot(ctx); err != nil {
		return "", err
	}
	inv, err := s.inventory("trixie", []*host{h})
	if err != nil {
		return "", err
	}
	if _, err := s.plain(ctx, inv, "site"); err != nil {
		return "", err
	}
	if err := s.healthy(ctx, h); err != nil {
		return "", err
	}
	if _, err := unchanged(s.plain(ctx, inv, "site")); err != nil {
		return "", err
	}
	took, err := s.restart(ctx, h)
	if err != nil {
		return "", err
	}
	if _, err := h.ssh(ctx, orderly+" && systemctl start matriarch"); err != nil {
		return "", err
	}
	if err := s.healthy(ctx, h); err != nil {
		return "", err
	}
	out, err := h.ssh(ctx, "systemctl --version | head -1; cat /var/lib/matriarch/pgdata/PG_VERSION")
	return fmt.Sprintf("%s; restarted in %.1f s, stopped in order", strings.ReplaceAll(out, "\n", ", PostgreSQL "), took.Seconds()), err
}
