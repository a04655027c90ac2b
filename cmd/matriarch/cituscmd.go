package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/citus"
	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/transport"
)

func (p *program) citusVerb() *cli.Command {
	return &cli.Command{
		Name: "citus", Usage: "show the Citus metadata, move shards, take worker groups out", Category: "Change",
		Description: "Rows of pg_dist_node are kept right without any command; these are for what an operator decides.\nExample:\n   matriarch citus status",
		Subcommands: []*cli.Command{
			{
				Name: "status", Usage: "compare the metadata of every node with what is wanted",
				Description: "Exit code 1 when a node does not answer or anything differs.\nExample:\n   matriarch citus status --database app",
				Flags:       []cli.Flag{databaseFlag()},
				Action:      p.onCitus(0, p.citusStatus),
			},
			{
				Name: "rebalance", Usage: "spread shards over the groups",
				Description: "Shards move in the background, while clients read and write. With --watch it shows what moves until all is done; a job under way is joined, and a\n" +
					"failover in between only makes it take longer.\n" +
					"Example:\n   matriarch citus rebalance --plan\n   matriarch citus rebalance --watch\n   matriarch citus rebalance --stop",
				Flags: append(moveFlags(),
					&cli.StringFlag{Name: "strategy", Usage: "`NAME` in pg_dist_rebalance_strategy: by_disk_size, by_shard_count; without: the database's default"},
					&cli.BoolFlag{Name: "plan", Aliases: []string{"dry-run"}, Usage: "say what would move, and change nothing"},
					&cli.BoolFlag{Name: "stop", Usage: "cancel what is under way; what was moved stays where it is"},
				),
				Action: p.onCitus(0, p.citusRebalance),
			},
			{
				Name: "drain", Usage: "move all shards away from a worker group", ArgsUsage: "GROUP",
				Description: "The group takes no new shards, either. It stays a part of the formation.\nExample:\n   matriarch citus drain 2 --watch\n   matriarch citus drain 2 --undo",
				Flags:       append(moveFlags(), &cli.BoolFlag{Name: "undo", Usage: "let it take shards again; nothing moves before the next rebalance"}),
				Action:      p.onCitus(1, p.citusDrain),
			},
			{
				Name: "remove-group", Usage: "take a drained worker group out of the metadata", ArgsUsage: "GROUP",
				Description: "Refused while it has the only copy of a shard. Its nodes go on until 'matriarch remove' takes them out, the last one included; data directories stay.\n" +
					"Example:\n   matriarch citus remove-group 2",
				Flags:  []cli.Flag{yesFlag()},
				Action: p.onCitus(1, p.citusRemoveGroup),
			},
			{
				Name: "add-group", Usage: "take a retired worker group back", ArgsUsage: "GROUP",
				Description: "A new group needs no command: it is registered when its first node joins.\nExample:\n   matriarch citus add-group 2",
				Flags:       []cli.Flag{&cli.DurationFlag{Name: "wait", Usage: "how long to wait until it is registered", Value: time.Minute}},
				Action:      p.onCitus(1, p.citusAddGroup),
			},
		},
	}
}

func databaseFlag() cli.Flag {
	return &cli.StringFlag{Name: "database", Aliases: []string{"d"}, Usage: "only this `DATABASE`; without: all that are listed in the settings"}
}

// moveFlags are those of everything that makes shards move.
func moveFlags() []cli.Flag {
	return []cli.Flag{
		databaseFlag(),
		&cli.StringFlag{Name: "mode", Usage: "how a shard is copied: auto (refuses tables without a primary key or replica identity), force_logical or block_writes", Value: "auto"},
		&cli.BoolFlag{Name: "watch", Aliases: []string{"W"}, Usage: "show the progress until it is done"},
		&cli.Float64Flag{Name: "interval", Aliases: []string{"w"}, Usage: "watch, every so many `SECONDS`", Value: 1},
	}
}

// onCitus connects, and reads GROUP where there is one.
func (p *program) onCitus(groups int, do func(*cli.Context, cluster, fsm.GroupID) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		var names []string
		if groups > 0 {
			names = append(names, "GROUP")
		}
		args, err := arguments(c, names...)
		if err != nil {
			return err
		}
		var g int
		if groups > 0 {
			if g, err = strconv.Atoi(args[0]); err != nil || g < 0 {
				return usagef(c, "GROUP %q must be a number, as 'matriarch list' shows it", args[0])
			}
		}
		if m := c.String("mode"); m != "" && m != "auto" && m != "force_logical" && m != "block_writes" {
			return usagef(c, "mode %q must be auto, force_logical or block_writes", m)
		}
		if every := c.Float64("interval"); c.IsSet("interval") && (every < 0.05 || every > 3600) {
			return usagef(c, "interval %v must be 0.05 to 3600 seconds", every)
		}
		cl, err := p.connect(c)
		if err != nil {
			return err
		}
		defer cl.Close()
		return do(c, cl, fsm.GroupID(g))
	}
}

func citusAsk(c *cli.Context, do admin.CitusDo, g fsm.GroupID) admin.CitusRequest {
	mode := c.String("mode")
	if mode == "auto" {
		mode = ""
	}
	return admin.CitusRequest{Do: do, Database: c.String("database"), Group: g, Options: citus.RebalanceOptions{Strategy: c.String("strategy"), Mode: mode}}
}

// leaderWait is how long a command waits for a Raft leader: an election takes a second or two.
const leaderWait = 10 * time.Second

// leadCitus has the leader do something. Another leader is asked only by a refusal of one that leads no more: nothing was done.
func leadCitus(c *cli.Context, cl cluster, req admin.CitusRequest) (out []admin.CitusAnswer, err error) {
	ctx, cancel := context.WithTimeout(c.Context, leaderWait)
	defer cancel()
	failed := errors.New("there is no Raft leader just now: see 'matriarch list'")
	polled := poll(ctx, func() (bool, error) {
		st, err := cl.Formation(ctx)
		if err != nil {
			return false, err
		}
		leader, ok := st.State.Nodes[st.Raft.Leader]
		if !ok {
			return false, nil
		}
		out, err = cl.Citus(c.Context, leader, req)
		if e, ok := errors.AsType[*transport.Error](err); ok && e.Code == transport.CodeNotLeader {
			return false, nil
		}
		failed = err
		return true, nil
	})
	switch {
	case errors.Is(polled, context.DeadlineExceeded):
		err = failed
	case polled != nil:
		err = polled
	default:
		err = failed
	}
	if err != nil {
		return out, fmt.Errorf("%s: %w", c.Command.Name, err)
	}
	return out, nil
}

// failures joins what went wrong in single databases.
func failures(c *cli.Context, answers []admin.CitusAnswer) error {
	var errs []error
	for _, a := range answers {
		if a.Error != "" {
			errs = append(errs, errors.New(a.Error))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %s", c.Command.Name, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

func (p *program) citusRemoveGroup(c *cli.Context, cl cluster, g fsm.GroupID) error {
	if err := p.confirm(c, "yes", fmt.Sprintf("Group %d leaves the Citus metadata of every database. Its data directories stay as they are.", g)); err != nil {
		return err
	}
	if _, err := leadCitus(c, cl, citusAsk(c, admin.CitusRemove, g)); err != nil {
		return err
	}
	return done(c, "group %d is out of the metadata; take its nodes out with 'matriarch remove NODE', or the group back with 'matriarch citus add-group %d'", g, g)
}

func (p *program) citusAddGroup(c *cli.Context, cl cluster, id fsm.GroupID) error {
	st, err := cl.Formation(c.Context)
	if err != nil {
		return err
	}
	g, ok := st.State.Groups[id]
	switch {
	case !ok:
		return fmt.Errorf("add-group: there is no group %d: %s; a new one begins with 'matriarch join --group %d'", id, groupNames(admin.NewFormation(st)), id)
	case !g.Retired:
		return fmt.Errorf("add-group: group %d is not retired: it is registered by itself, see 'matriarch citus status'", id)
	}
	back := false
	if err := submit(c, cl, admin.Request{GroupSet: &fsm.GroupSet{Group: id, Retired: &back, By: operator()}}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("wait"))
	defer cancel()
	err = poll(ctx, func() (bool, error) {
		answers, err := cl.Citus(ctx, fsm.Node{}, admin.CitusRequest{Do: admin.CitusStatus})
		return err == nil && registered(answers, id), nil
	})
	if err != nil {
		return fmt.Errorf("add-group: group %d is taken back, but not registered after %s: see 'matriarch citus status'", id, c.Duration("wait"))
	}
	return done(c, "group %d is registered again; 'matriarch citus rebalance' gives it shards", id)
}

// registered reports whether the coordinator has the group's row in every database.
func registered(answers []admin.CitusAnswer, g fsm.GroupID) bool {
	for _, a := range answers {
		has := false
		for _, n := range a.Status.Nodes {
			for _, r := range n.Rows {
				has = has || n.Group == 0 && r.Group == g && r.Role == "primary" && r.Active
			}
		}
		if !has {
			return false
		}
	}
	return len(answers) > 0
}
