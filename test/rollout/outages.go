package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// away takes the primary of a group away, brings it back, and says what clients saw until another took over.
func (s *scene) away(ctx context.Context, group int, take, bring func(*host) error) (string, error) {
	p, err := s.primary(ctx, s.nodes[0], group)
	if err != nil {
		return "", err
	}
	_, _, says, err := s.measured(ctx, func() error {
		if err := take(p); err != nil {
			return err
		}
		return s.until(ctx, time.Minute, "another is primary", func() error {
			now, err := s.primary(ctx, s.other(p), group)
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
	says, err := s.away(ctx, 0, func(h *host) error {
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
	return s.away(ctx, 0, func(h *host) (err error) {
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
	return s.away(ctx, 0, (*host).powerCut, func(h *host) error { return h.boot(ctx) })
}

// freeze stops the agent's process, as a deadlock in it would, and tells which one it was.
func (s *scene) freeze(ctx context.Context, h *host) (self, error) {
	was, err := s.self(ctx, h)
	if err == nil {
		_, err = h.ssh(ctx, fmt.Sprintf("kill -STOP %d", was.Processes.Agent))
	}
	return was, err
}

// revived waits until systemd's watchdog has replaced a frozen agent.
func (s *scene) revived(ctx context.Context, h *host, was self) (now self, err error) {
	err = s.until(ctx, time.Minute, h.name+" has a new agent", func() (err error) {
		now, err = s.self(ctx, h)
		if err == nil && (now.Processes.Agent == was.Processes.Agent || now.Postmaster == 0) {
			err = errors.New("it has not")
		}
		return err
	})
	if err != nil {
		return now, err
	}
	_, err = h.ssh(ctx, `test "$(systemctl show -p NRestarts --value matriarch)" -gt 0 && journalctl -u matriarch -o cat | grep -qi 'watchdog timeout'`)
	return now, err
}

// hungStandby freezes the agent of a standby: its PostgreSQL streams on, with the same process, and nobody sees an error.
func (s *scene) hungStandby(ctx context.Context) (string, error) {
	p, err := s.primary(ctx, s.nodes[0], 0)
	if err != nil {
		return "", err
	}
	h := s.nodes[slices.IndexFunc(s.nodes, func(h *host) bool { return h.group == 0 && h != p && h != s.nodes[0] })]
	began := time.Now()
	var took time.Duration
	_, failed, says, err := s.measured(ctx, func() error {
		was, err := s.freeze(ctx, h)
		if err != nil {
			return err
		}
		now, err := s.revived(ctx, h, was)
		if err == nil && now.Postmaster != was.Postmaster {
			err = fmt.Errorf("%s: %s, and was %s", h.name, now.served(), was.served())
		}
		took = time.Since(began)
		return errors.Join(err, s.healthy(ctx, s.other(h)))
	})
	if err == nil && failed > 0 {
		err = errors.New(says)
	}
	return fmt.Sprintf("new agent after %.0f s, same postmaster; %s", took.Seconds(), says), err
}

// hungPrimary freezes the agent of a primary: its sentinel ends PostgreSQL with the lease, another takes over, and the watchdog brings it back.
func (s *scene) hungPrimary(ctx context.Context) (string, error) {
	var was self
	_, group := s.newcomer()
	return s.away(ctx, group, func(h *host) (err error) {
		was, err = s.freeze(ctx, h)
		return err
	}, func(h *host) error {
		_, err := s.revived(ctx, h, was)
		return err
	})
}
