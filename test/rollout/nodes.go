package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// newHost makes the host that is to be added, once.
func (s *scene) newHost(ctx context.Context) error {
	if s.new != nil {
		return nil
	}
	name, group := s.newcomer()
	s.new = s.add(name, "bookworm", group)
	if err := s.new.lay(); err != nil {
		return err
	}
	var err error
	s.inv, err = s.inventory("inventory", append(slices.Clip(s.nodes), s.new))
	return errors.Join(err, s.new.boot(ctx))
}

func (s *scene) playAddNode(ctx context.Context) (recap, error) {
	return s.play(ctx, s.inv, "add-node", "-e", "matriarch_new="+s.new.name, "-e", "matriarch_binary="+s.program())
}

// addNodeFails adds a host that has no PostgreSQL, then one on which somebody else has the port: both fail with a reason, and the others do
// not notice. What is left to do is done by the step after this.
func (s *scene) addNodeFails(ctx context.Context) (string, error) {
	if err := s.newHost(ctx); err != nil {
		return "", err
	}
	_, failed, says, err := s.measured(ctx, func() error {
		return s.untouched(ctx, func() error {
			for _, f := range []struct{ harm, heal string }{
				{"mv /usr/lib/postgresql/15/bin/postgres /root/", "mv /root/postgres /usr/lib/postgresql/15/bin/"},
				{"systemd-run -q --unit=squatter python3 -m http.server 7400", "systemctl stop squatter"},
			} {
				if _, err := s.new.ssh(ctx, f.harm); err != nil {
					return err
				}
				if r, err := s.playAddNode(ctx); err == nil || r.failed != 1 || r.unreachable != 0 {
					return fmt.Errorf("%s: want one host failed and the others well, not %+v (%w)", f.harm, r, err)
				}
				if _, err := s.new.ssh(ctx, f.heal); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err == nil && failed > 0 {
		err = errors.New(says)
	}
	return "no server, then a port that is taken: the others untouched; " + says, err
}

func (s *scene) addNode(ctx context.Context) (string, error) {
	if err := s.newHost(ctx); err != nil {
		return "", err
	}
	_, failed, says, err := s.measured(ctx, func() error {
		if _, err := s.playAddNode(ctx); err != nil {
			return err
		}
		s.nodes, s.new = append(s.nodes, s.new), nil
		return s.healthy(ctx, s.nodes[0])
	})
	if err == nil && failed > 0 {
		err = errors.New(says)
	}
	return says, err
}

// program is the version that the formation runs: a node of another major version may not join.
func (s *scene) program() string {
	if s.upgraded {
		return filepath.Join(s.dir, "matriarch-new")
	}
	return filepath.Join(s.dir, "matriarch")
}

// newcomer is the host that is added and removed.
func (s *scene) newcomer() (name string, group int) {
	if s.o.reduced {
		return "coord-4", 0
	}
	return "work1-3", 1
}

func (s *scene) removeNode(ctx context.Context) (string, error) {
	name, _ := s.newcomer()
	if s.nodes[len(s.nodes)-1].name != name {
		return "", errors.New("there is nobody to remove: the step add-node comes before")
	}
	_, _, says, err := s.measured(ctx, func() error {
		_, err := s.plain(ctx, s.inv, "remove-node", "-e", "matriarch_node="+name)
		return errors.Join(err, s.healthy(ctx, s.nodes[0]))
	})
	if err != nil {
		return says, err
	}
	gone := s.named(name)
	if _, err := gone.ssh(ctx, "! systemctl is-active -q matriarch && test -d /var/lib/matriarch/pgdata"); err != nil {
		return says, err
	}
	s.nodes = s.nodes[:len(s.nodes)-1]
	s.inv, err = s.inventory("inventory", s.nodes)
	return says + "; its data is there", errors.Join(err, gone.powerCut())
}
