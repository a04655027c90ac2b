package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	leaveLimit  = 10 * time.Second
	rejoinLimit = 90 * time.Second
)

// removeAndAdd takes a standby out for good and has its host join anew with empty directories. What it had is set aside.
func (n *nemesis) removeAndAdd(ctx context.Context, f fault, t int) (func() error, error) {
	node := n.f.nodes[t]
	if !node.claim() {
		return nil, errBusy
	}
	if _, err := n.f.ask(ctx, 45*time.Second, "remove", node.name(), "--yes"); err != nil {
		node.release()
		n.trace.note("remove #%d: %s", f.id, outcome(err))
		return nil, nil
	}
	n.hold(t)
	alone := until(ctx, leaveLimit, func() error {
		all, err := processes(t)
		if err == nil && len(all) > 0 {
			err = fmt.Errorf("%d processes", len(all))
		}
		return err
	})
	n.trace.note("remove #%d: done, it ended by itself: %s", f.id, outcome(alone))
	if err := errors.Join(end(node), node.empty()); err != nil {
		return nil, err
	}
	return func() error {
		defer node.release()
		defer n.letGo(t)
		return n.f.rejoin(context.WithoutCancel(ctx), node)
	}, nil
}

// empty sets aside what a node had; of the last removal only.
func (n *node) empty() error {
	var errs []error
	for _, dir := range []string{n.state(), n.pgdata()} {
		old, _ := filepath.Glob(dir + ".*")
		for _, o := range old {
			errs = append(errs, os.RemoveAll(o))
		}
		if err := os.Rename(dir, dir+".removed"); !errors.Is(err, fs.ErrNotExist) { // a standby that was not cloned yet has no data
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.Remove(n.config()))...)
}

// join has a host join by any of the others.
func (f *formation) join(ctx context.Context, n *node, token string) error {
	var errs []error
	for _, via := range f.nodes {
		if via == n || via.isOff() {
			continue
		}
		jctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := output(inside(jctx, n, append([]string{f.exe, "join", fmt.Sprintf("%s:%d", ip(via.i), peerPort), "--token", token}, f.flags(n)...)...))
		cancel()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (f *formation) rejoin(ctx context.Context, n *node) error {
	var made struct{ Token string }
	err := until(ctx, rejoinLimit, func() error {
		if made.Token == "" {
			out, err := f.ask(ctx, 10*time.Second, "token", "create", "--ttl", "10m", "--uses", "20", "--output", "json")
			if err != nil {
				return err
			}
			if err := json.Unmarshal(out, &made); err != nil {
				return err
			}
		}
		return f.join(ctx, n, made.Token)
	})
	if err != nil {
		return fmt.Errorf("join %s again: %w", n.name(), err)
	}
	return nil
}

const (
	tidyEvery = time.Second
	tidyAfter = 30 * time.Second // what is younger may still be written
)

// tidy is the operator who looks through what was set aside: a node refuses to set more aside than fits, or than it may keep.
func (n *nemesis) tidy(ctx context.Context) {
	for sleep(ctx, tidyEvery) {
		for _, node := range n.f.nodes {
			if err := node.tidy(); err != nil {
				n.trace.note("look through what %s has set aside: %v", node.name(), err)
			}
		}
	}
}

// tidy keeps the disks from faults that have them to themselves until it is done.
func (n *node) tidy() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.claimed {
		return nil
	}
	dirs, _ := filepath.Glob(n.pgdata() + ".set-aside-*")
	logs, _ := filepath.Glob(filepath.Join(n.state(), "pg", "set-aside", "*"))
	for _, l := range logs {
		if info, err := os.Stat(l); err == nil && time.Since(info.ModTime()) > tidyAfter {
			dirs = append(dirs, l)
		}
	}
	var errs []error
	for _, d := range dirs {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}
