package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"matriarch/citus"
	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/identity"
)

// rebalanceFile stands in the state folder from a join with --rebalance until shards have begun to move.
func rebalanceFile(dir identity.Dir) string { return filepath.Join(string(dir), "rebalance-wanted") }

const (
	rebalanceLook = 2 * time.Second
	rebalanceWait = 30 * time.Minute // for a group to be registered; then an operator has to look anyway
)

// rebalanceAsked moves shards to the group that this node was joined to, once it is registered with Citus.
func (n *node) rebalanceAsked(ctx context.Context) error {
	file := rebalanceFile(n.dir)
	st, err := os.Stat(file)
	if err != nil || n.citus == nil {
		return nil
	}
	tick := time.NewTicker(rebalanceLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		job, err := n.rebalanceNow(ctx)
		switch {
		case err == nil:
			n.log.Info("shards move to the new group", "group", n.cfg.Node.Group, "jobs", job)
		case time.Since(st.ModTime()) > rebalanceWait:
			n.log.Error("the rebalance asked for at the join was given up: start it with 'matriarch citus rebalance'", "error", err)
		default:
			n.log.Debug("not rebalanced yet", "error", err)
			continue
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.log.Warn("the wish for a rebalance could not be taken back", "file", file, "error", err)
		}
		return nil
	}
}

// rebalanceNow asks the leader, if the group's primary is registered and in sync in every database.
func (n *node) rebalanceNow(ctx context.Context) (jobs []int64, err error) {
	s := n.consensus.State()
	ws, err := wants(s)
	if err != nil {
		return nil, err
	}
	g := fsm.GroupID(n.cfg.Node.Group)
	for _, d := range n.citus.Status(ctx, ws) {
		there := slices.ContainsFunc(d.Nodes, func(x citus.NodeStatus) bool {
			return x.Group == 0 && slices.ContainsFunc(x.Rows, func(r citus.NodeRow) bool { return r.Group == g && r.Role == "primary" && r.Synced })
		})
		if !there {
			return nil, fmt.Errorf("group %d is not registered in database %s yet", g, d.Database)
		}
	}
	req := admin.CitusRequest{Do: admin.CitusRebalance}
	var out []admin.CitusAnswer
	if n.leading.Load() != nil {
		out, err = source{n}.Citus(ctx, req)
	} else {
		leader, ok := s.Nodes[n.consensus.Status().Leader]
		if !ok {
			return nil, errors.New("there is no Raft leader just now")
		}
		err = n.client.Call(ctx, leader.Peer, string(leader.ID), admin.CallCitus, req, &out)
	}
	for _, a := range out {
		jobs = append(jobs, a.Job)
		if a.Error != "" {
			err = errors.Join(err, fmt.Errorf("database %s: %s", a.Database, a.Error))
		}
	}
	return jobs, err
}
