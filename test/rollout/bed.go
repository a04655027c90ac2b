package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// bed is the switch, the hosts behind it and what is known of them.
type bed struct {
	dir, out, cgroup string
	citus            bool
	hosts            []*host
	table            table
	begun            int // playbooks
}

func newBed(o options) (*bed, error) {
	b := &bed{dir: o.dir, out: o.out, cgroup: filepath.Join("/sys/fs/cgroup", filepath.Base(o.dir))}
	_, err := os.Stat("/usr/share/postgresql/15/extension/citus.control")
	b.citus = err == nil
	return b, sh(`rm -rf %[1]s; mkdir -p %[1]s %[2]s/hosts; ssh-keygen -q -t ed25519 -N "" -f %[2]s/key
ip link add br0 type bridge; ip addr add 10.77.0.254/24 dev br0; ip link set br0 up`, o.out, o.dir)
}

func (b *bed) add(name, suite string, group int) *host {
	h := &host{bed: b, name: name, n: len(b.hosts) + 1, suite: suite, group: group}
	b.hosts = append(b.hosts, h)
	return h
}

func (b *bed) named(name string) *host {
	return b.hosts[slices.IndexFunc(b.hosts, func(h *host) bool { return h.name == name })]
}

// each does something on all hosts at the same time.
func each(hosts []*host, do func(*host) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(hosts))
	for i, h := range hosts {
		wg.Go(func() { errs[i] = do(h) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// until repeats a look until it has no objection.
func (b *bed) until(ctx context.Context, limit time.Duration, what string, look func() error) error {
	end := time.Now().Add(limit)
	for {
		err := look()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %s: %s: %w", limit, what, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// formation is what `matriarch status` says, as far as it is needed here.
type formation struct {
	Healthy  bool     `json:"healthy"`
	Troubles []string `json:"troubles"`
	Members  []struct {
		Name    string `json:"member"`
		Version string `json:"version"`
	} `json:"members"`
	Groups []group `json:"groups"`
}

type group struct {
	ID      int    `json:"group"`
	Primary string `json:"primary"`
	Epoch   string `json:"epoch"`
}

func (b *bed) formation(ctx context.Context, from *host) (f formation, err error) {
	out, err := from.ssh(ctx, "matriarch --output json status")
	if err == nil {
		err = json.Unmarshal([]byte(out), &f)
	}
	return f, err
}

func (b *bed) healthy(ctx context.Context, from *host) error {
	return b.until(ctx, 3*time.Minute, "the formation is healthy", func() error {
		f, err := b.formation(ctx, from)
		if err == nil && !f.Healthy {
			err = fmt.Errorf("troubles: %q", f.Troubles)
		}
		return err
	})
}

// primary is the host that has a group's lease.
func (b *bed) primary(ctx context.Context, from *host, group int) (*host, error) {
	f, err := b.formation(ctx, from)
	if err != nil {
		return nil, err
	}
	for _, g := range f.Groups {
		if g.ID == group && g.Primary != "" {
			return b.named(g.Primary), nil
		}
	}
	return nil, fmt.Errorf("group %d has no primary", group)
}

// save keeps the hosts' logs of a run that failed.
func (b *bed) save(ctx context.Context) {
	_ = each(b.hosts, func(h *host) error {
		log, err := h.ssh(ctx, "journalctl --no-pager -o short-precise -n 2000; echo; cat /var/lib/matriarch/sentinel.log /var/lib/matriarch/postgresql.log | tail -500; matriarch list; matriarch explain")
		return os.WriteFile(filepath.Join(b.out, h.name+".log"), []byte(fmt.Sprintf("%s\n%v\n", log, err)), 0o644)
	})
}
