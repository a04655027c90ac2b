package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// away takes the primary of group 0 away, brings it back, and says what clients saw until another took over.
func (s *scene) away(ctx context.Context, take, bring func(*host) error) (string, error) {
	p, err := s.primary(ctx, s.nodes[0], 0)
	if err != nil {
		return "", err
	}
	_, _, says, err := s.measured(ctx, func() error {
		if err := take(p); err != nil {
			return err
		}
		return s.until(ctx, time.Minute, "another is primary", func() error {
			now, err := s.primary(ctx, s.other(p), 0)
			if err == nil && now == p {
				err = errors.New("it is still " + p.name)
			}
			return err
		})
	})
	if err != nil {
		return says, err
	}
	began := time.Now()
	if err := bring(p); err != nil {
		return says, err
	}
	err = s.healthy(ctx, s.other(p))
	return fmt.Sprintf("%s; redundant again %.1f s later", says, time.Since(began).Seconds()), err
}

func (s *scene) stopPrimary(ctx context.Context) (string, error) {
	var took time.Duration
	says, err := s.away(ctx, func(h *host) error {
		began := time.Now()
		_, err := h.ssh(ctx, "systemctl stop matriarch && "+nothing+" && journalctl -u matriarch -o cat | grep -q 'handed over before the stop'")
		took = time.Since(began)
		return err
	}, func(h *host) error {
		_, err := h.ssh(ctx, "systemctl start matriarch")
		return err
	})
	return fmt.Sprintf("stopped in %.1f s; %s", took.Seconds(), says), err
}

func (s *scene) reboot(ctx context.Context) (string, error) {
	var old string
	return s.away(ctx, func(h *host) (err error) {
		old, err = h.ssh(ctx, "cat /proc/1/stat | cut -d' ' -f22; systemctl reboot")
		return err
	}, func(h *host) error {
		return s.until(ctx, 2*time.Minute, h.name+" is back", func() error {
			now, err := h.ssh(ctx, "cat /proc/1/stat | cut -d' ' -f22")
			if err == nil && now == old {
				err = errors.New("it has not gone down")
			}
			return err
		})
	})
}

func (s *scene) powerCut(ctx context.Context) (string, error) {
	return s.away(ctx, (*host).powerCut, func(h *host) error { return h.boot(ctx) })
}

// stopAll stops the whole formation, the primaries as they come, and starts it again.
func (s *scene) stopAll(ctx context.Context) (string, error) {
	began := time.Now()
	err := each(s.nodes, func(h *host) error {
		_, err := h.ssh(ctx, `systemctl stop matriarch && `+nothing+` && test "$(systemctl show -p Result --value matriarch)" = success && tail -n 1 /var/lib/matriarch/postgresql.log | grep -q 'database system is shut down'`)
		return err
	})
	if err != nil {
		return "", err
	}
	stopped := time.Since(began)
	began = time.Now()
	if err := each(s.nodes, func(h *host) error { _, err := h.ssh(ctx, "systemctl start matriarch"); return err }); err != nil {
		return "", err
	}
	if err := s.healthy(ctx, s.nodes[0]); err != nil {
		return "", err
	}
	return fmt.Sprintf("down in order after %.1f s, healthy %.1f s after the start", stopped.Seconds(), time.Since(began).Seconds()), nil
}

// restore saves the control plane and rebuilds it from the file; the data stays where it is.
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
	err := each(s.nodes, func(h *host) error {
		_, err := h.ssh(ctx, nothing+" && test ! -e /usr/bin/matriarch && test -f /var/lib/matriarch/pgdata/PG_VERSION && test -f /etc/matriarch/matriarch.yml")
		return err
	})
	return "refused without the word; data and configuration stay", err
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
	out, err := h.ssh(ctx, "systemctl --version | head -1; cat /var/lib/matriarch/pgdata/PG_VERSION")
	_ = os.Remove(inv)
	return strings.ReplaceAll(out, "\n", ", PostgreSQL "), err
}
