package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/internal/admin"
	"matriarch/internal/demo"
)

func (p *program) demoVerb() *cli.Command {
	keep := func(usage string) cli.Flag { return &cli.BoolFlag{Name: "keep", Usage: usage} }
	return &cli.Command{
		Name: "demo", Usage: "seven nodes on this machine: start, kill, count what survived", Category: "Demo",
		Description: "Without a verb: the whole show. It starts a formation on loopback addresses, writes to it, kills the postmaster of a worker's primary and then\n" +
			"a whole coordinator node, counts, and leaves nothing behind. Exit code 1 if a single acknowledged write is missing.\n" +
			"Example:\n   matriarch demo\n   matriarch demo up && matriarch demo kill work1-1",
		Flags: demoFlags(keep("leave the nodes running at the end")),
		Action: func(c *cli.Context) error {
			if name := c.Args().First(); name != "" {
				return unknownVerb(c, c.Command.Subcommands, name)
			}
			return p.demo(c, func(ctx context.Context, d *demo.Demo) error { return d.Show(ctx, c.Bool("keep")) })
		},
		Subcommands: append(p.demoVerbs(keep), p.demoNodeVerbs()...),
	}
}

// demoVerbs concern the demo as a whole.
func (p *program) demoVerbs(keep func(usage string) cli.Flag) []*cli.Command {
	return []*cli.Command{
		{
			Name: "up", Usage: "start all nodes and wait until they are healthy",
			Description: "Makes the nodes by the same verbs that real hosts use.\nExample:\n   matriarch demo up --dir /var/tmp/demo",
			Flags:       demoFlags(keep("start the nodes that are in the directory already")),
			Action: p.demoDo(func(ctx context.Context, c *cli.Context, d *demo.Demo) error {
				took, err := d.Up(ctx, c.Bool("keep"))
				switch {
				case errors.Is(err, demo.ErrExists):
					return err
				case err != nil:
					return fmt.Errorf("%w; 'matriarch demo down' ends what was started", err)
				}
				fmt.Fprintf(p.err, "all nodes are healthy and registered after %.1f s\n", took.Seconds())
				return nil
			}),
		},
		{
			Name: "down", Usage: "end all nodes and remove their directory",
			Description: "Kills whatever runs. With --keep it stops everything in good order and leaves the files.\nExample:\n   matriarch demo down",
			Flags:       demoFlags(keep("stop in good order and keep the files, for 'up --keep'")),
			Action: p.demoDo(func(ctx context.Context, c *cli.Context, d *demo.Demo) error {
				return d.Down(ctx, c.Bool("keep"))
			}),
		},
		{
			Name: "status", Usage: "show where everything is and what runs",
			Description: "Shows per node its group, address, directories, log and the pids of agent, sentinel and postmaster (0: it does not run).\nExample:\n   matriarch demo status --output json",
			Flags:       demoFlags(),
			Action:      p.demoStatus,
		},
		{
			Name: "measure", Usage: "repeat the outages and print medians",
			Description: "Each run starts a new formation, watches it idle, kills the postmaster of a worker's primary, then that whole node, then the coordinator's\n" +
				"primary node, all under writes. Takes about a minute a run.\nExample:\n   matriarch demo measure --runs 5 --output json",
			Flags:  demoFlags(&cli.IntFlag{Name: "runs", Usage: "how many", Value: 5}),
			Action: p.demoMeasure,
		},
	}
}

func (p *program) demoNodeVerbs() []*cli.Command {
	return []*cli.Command{
		p.demoNodeVerb("start", "start a node", "Starts the agent, which starts the rest.\nExample:\n   matriarch demo start work1-1", nil,
			func(_ context.Context, _ *cli.Context, d *demo.Demo, node string) error { return d.Start(node) }),
		p.demoNodeVerb("stop", "stop a node in good order", "Stops PostgreSQL, then agent and sentinel.\nExample:\n   matriarch demo stop work1-1", nil,
			func(ctx context.Context, _ *cli.Context, d *demo.Demo, node string) error { return d.Stop(ctx, node) }),
		p.demoNodeVerb("kill", "kill a node with SIGKILL", "Kills everything of the node in one go: agent, sentinel, postmaster and all its processes.\n"+
			"Example:\n   matriarch demo kill work1-1\n   matriarch demo kill work1-1 --only postmaster",
			[]cli.Flag{&cli.StringFlag{Name: "only", Usage: "kill one process: `agent`, sentinel or postmaster"}},
			func(_ context.Context, c *cli.Context, d *demo.Demo, node string) error {
				return d.Kill(node, c.String("only"))
			}),
	}
}

func demoFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "dir", Usage: "`DIR` for everything of the demo", Value: defaultDemoDir(), DefaultText: "matriarch-demo in $TMPDIR or /var/tmp"},
		&cli.StringFlag{Name: "pg-bin", Usage: "`DIR` of PostgreSQL's programs", DefaultText: "the distribution's", EnvVars: []string{"MATRIARCH_PG_BIN"}},
	}, more...)
}

func defaultDemoDir() string {
	if tmp := os.Getenv("TMPDIR"); filepath.IsAbs(tmp) {
		return filepath.Join(tmp, "matriarch-demo")
	}
	return "/var/tmp/matriarch-demo"
}

// demo runs one action; Ctrl-C ends it in good order.
func (p *program) demo(c *cli.Context, do func(context.Context, *demo.Demo) error) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	dir, err := filepath.Abs(c.String("dir"))
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	out := p.out
	if c.String("output") != "table" {
		out = p.err // the result alone belongs to standard output
	}
	d := demo.New(demo.Config{
		Dir: dir, Exe: exe, PGBin: c.String("pg-bin"), Out: out,
		List: func(w io.Writer, f admin.Formation) { renderList(w, f, time.Now()) },
	})
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	return do(ctx, d)
}

func (p *program) demoDo(do func(context.Context, *cli.Context, *demo.Demo) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if _, err := arguments(c); err != nil {
			return err
		}
		return p.demo(c, func(ctx context.Context, d *demo.Demo) error { return do(ctx, c, d) })
	}
}

func (p *program) demoNodeVerb(name, usage, description string, flags []cli.Flag, do func(context.Context, *cli.Context, *demo.Demo, string) error) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: "NODE", Description: description, Flags: demoFlags(flags...),
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "NODE")
			if err != nil {
				return err
			}
			return p.demo(c, func(ctx context.Context, d *demo.Demo) error { return do(ctx, c, d, args[0]) })
		},
	}
}

func (p *program) demoStatus(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	return p.demo(c, func(ctx context.Context, d *demo.Demo) error {
		nodes, err := d.Status(ctx)
		if err != nil {
			return err
		}
		return emit(c, nodes, func(w io.Writer) { renderDemo(w, nodes) })
	})
}

func renderDemo(w io.Writer, nodes []demo.NodeStatus) {
	var rows [][]string
	for _, n := range nodes {
		rows = append(rows, []string{
			strconv.Itoa(n.Group), n.Name, n.Postgres, "http://" + n.API, pidText(n.Pids.Agent), pidText(n.Pids.Sentinel), pidText(n.Pids.Postmaster), n.Role, n.State, n.Dir,
		})
	}
	grid(w, "", []string{"Group", "Node", "PostgreSQL", "API", "Agent", "Sentinel", "Postmaster", "Role", "State", "Directory"}, rows, 0, "Group", "Agent", "Sentinel", "Postmaster")
	fmt.Fprintln(w, "On the address of every node: port 6433 leads clients to the coordinator's primary, 6434 to any worker's, 6435 to the coordinator's standbys.")
}

func pidText(pid int) string {
	if pid == 0 {
		return "-"
	}
	return strconv.Itoa(pid)
}

func (p *program) demoMeasure(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	runs := c.Int("runs")
	if runs < 1 || runs > 1000 {
		return usagef(c, "runs %d must be 1 to 1000", runs)
	}
	return p.demo(c, func(ctx context.Context, d *demo.Demo) error {
		f, err := d.Measure(ctx, runs)
		if err != nil {
			return err
		}
		return emit(c, f, func(w io.Writer) {
			fmt.Fprintf(w, "Medians of %d runs:\n", f.Runs)
			pairs(w,
				"write gap, worker postmaster killed", fmt.Sprintf("%d ms", f.WorkerPostmaster),
				"write gap, worker node killed", fmt.Sprintf("%d ms", f.WorkerNode),
				"write gap, coordinator node killed", fmt.Sprintf("%d ms", f.CoordinatorNode),
				"up until healthy and registered", fmt.Sprintf("%.1f s", float64(f.UpMS)/1000),
				"memory of agent and sentinel", fmt.Sprintf("%.1f MB, the greatest of the seven nodes", float64(f.RSSKB)/1024),
				"idle CPU of all seven", fmt.Sprintf("%.1f %% of a core; with PostgreSQL %.1f %%", f.IdleCPU, f.IdleCPUWithServer),
				"acknowledged writes", fmt.Sprintf("%d, lost %d", f.Acknowledged, f.Lost),
			)
		})
	})
}
