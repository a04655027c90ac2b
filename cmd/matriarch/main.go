package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/config"
	"matriarch/internal/identity"
)

// version is set by the linker.
var version = "dev"

const defaultConfig = "/etc/matriarch/matriarch.yml"

func main() {
	os.Exit(run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program but for the process around it; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{in: stdin, out: stdout, err: stderr, open: openCluster, now: time.Now}
	return p.run(ctx, args)
}

// cluster is how verbs reach the nodes.
type cluster interface {
	Self() identity.Identity
	Status(ctx context.Context) (admin.Status, error)
	StatusOf(ctx context.Context, n fsm.Node) (admin.Status, error)
	Formation(ctx context.Context) (admin.Status, error)
	Submit(ctx context.Context, r admin.Request) (fsm.Result, error)
	RestartStandby(ctx context.Context, n fsm.Node) error
	Reinit(ctx context.Context, n fsm.Node, from fsm.NodeID) error
	WouldSwitch(ctx context.Context, leader fsm.Node, g fsm.GroupID, to fsm.NodeID) (fsm.NodeID, error)
	Citus(ctx context.Context, to fsm.Node, req admin.CitusRequest) ([]admin.CitusAnswer, error)
	Snapshot(ctx context.Context) ([]byte, error)
	Close()
}

func openCluster(cfg config.Config) (cluster, error) { return admin.Open(cfg) }

// program is one run of the command line.
type program struct {
	in       io.Reader
	out, err io.Writer
	open     func(config.Config) (cluster, error)
	now      func() time.Time
}

func (p *program) run(ctx context.Context, args []string) int {
	app := p.app()
	args, err := arrange(app, args)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	if err == nil {
		return 0
	}
	if !errors.Is(err, errSaid) {
		fmt.Fprintf(p.err, "matriarch: %v\n", err)
	}
	if _, ok := errors.AsType[misuse](err); ok {
		return 2
	}
	return 1
}

// misuse says that the command line was wrong.
type misuse struct{ error }

// usageError makes an error that ends the program with exit code 2.
func usageError(format string, args ...any) error { return misuse{fmt.Errorf(format, args...)} }

// usagef is a usageError that names the help to read.
func usagef(c *cli.Context, format string, args ...any) error {
	return usageError("%s: see '%s --help'", fmt.Sprintf(format, args...), helpName(c))
}

func helpName(c *cli.Context) string {
	if c.Command != nil && c.Command.HelpName != "" {
		return c.Command.HelpName
	}
	return "matriarch"
}

// errSaid ends a verb that has failed and has said so already.
var errSaid = errors.New("failed")

func (p *program) app() *cli.App {
	app := &cli.App{
		Name:  "matriarch",
		Usage: "keeps a PostgreSQL and Citus cluster alive",
		Flags: []cli.Flag{
			configFlag(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "print as table, json or yaml", Value: "table"},
		},
		Commands: append(leadVerbs(),
			p.listVerb(), p.topologyVerb(), p.statusVerb(), p.explainVerb(), p.historyVerb(), p.tokenVerb(), p.leaveVerb(), p.removeVerb(), p.failoverVerb(), p.switchoverVerb(), p.restartVerb(), p.reinitVerb(), p.citusVerb(),
			p.configVerb(), p.demoVerb(), p.versionVerb(), p.upgradeVerb(), p.snapshotVerb()),
		Action:         p.noVerb,
		Before:         checkOutput,
		OnUsageError:   wrongUsage,
		ExitErrHandler: func(*cli.Context, error) {},
		HideVersion:    true, HideHelpCommand: true,
		Reader: p.in, Writer: p.out, ErrWriter: p.err,
	}
	slices.SortFunc(app.Commands, func(a, b *cli.Command) int { return strings.Compare(a.Name, b.Name) })
	for _, c := range app.Commands {
		if c.Category == "" {
			c.Category = "Make and run nodes"
		}
	}
	strict(app.Commands, app.Flags, "")
	return app
}

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Usage: "the node's configuration `FILE`", Value: defaultConfig, EnvVars: []string{"MATRIARCH_CONFIG"}}
}

// strict makes every verb refuse what it does not know, and tells about the global options in its help. A verb's own flag must not hide a
// global one: given before the verb, it would be lost.
func strict(commands []*cli.Command, global []cli.Flag, parent string) {
	for _, c := range commands {
		c.OnUsageError, c.HideHelpCommand = wrongUsage, true
		if parent != "" {
			c.HelpName = parent + " " + c.Name
		}
		c.Flags = slices.DeleteFunc(c.Flags, func(f cli.Flag) bool {
			return slices.ContainsFunc(global, func(g cli.Flag) bool { return g.Names()[0] == f.Names()[0] })
		})
		c.Before = required(c.Flags)
		if len(c.Subcommands) == 0 {
			c.CustomHelpTemplate = cli.CommandHelpTemplate + globalHelp
			continue
		}
		strict(c.Subcommands, global, "matriarch "+c.Name)
		if c.Action == nil {
			c.Action = noSubcommand
		}
	}
}

// required takes over the check of required flags from the library, which would print the whole help.
func required(flags []cli.Flag) cli.BeforeFunc {
	var names []string
	for _, f := range flags {
		if s, ok := f.(*cli.StringFlag); ok && s.Required {
			s.Required = false
			names = append(names, s.Name)
		}
	}
	return func(c *cli.Context) error {
		for _, name := range names {
			if !c.IsSet(name) {
				return usagef(c, "--%s is missing", name)
			}
		}
		return nil
	}
}

const globalHelp = `
GLOBAL OPTIONS:
   --config FILE             the node's configuration (default: "` + defaultConfig + `") [$MATRIARCH_CONFIG]
   --output table|json|yaml  how to print the result (default: "table")
`

func wrongUsage(c *cli.Context, err error, _ bool) error {
	if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
		return usagef(c, "unknown flag %s", dashed(name))
	}
	return usagef(c, "%v", err)
}

// dashed writes a flag as people type it.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

func (p *program) noVerb(c *cli.Context) error {
	if name := c.Args().First(); name != "" {
		return unknownVerb(c, c.App.Commands, name)
	}
	c.App.Writer = p.err
	if err := cli.ShowAppHelp(c); err != nil {
		return err
	}
	return usagef(c, "no verb given")
}

func noSubcommand(c *cli.Context) error {
	if name := c.Args().First(); name != "" {
		return unknownVerb(c, c.Command.Subcommands, name)
	}
	names := make([]string, 0, len(c.Command.Subcommands))
	for _, s := range c.Command.Subcommands {
		names = append(names, s.Name)
	}
	return usagef(c, "say which: %s", strings.Join(names, ", "))
}

func unknownVerb(c *cli.Context, among []*cli.Command, name string) error {
	for _, other := range among {
		if !other.Hidden && strings.HasPrefix(other.Name, name[:1]) && strings.Contains(cli.SuggestCommand(among, name), strconv.Quote(other.Name)) {
			return usagef(c, "unknown verb %q (did you mean %s?)", name, other.Name)
		}
	}
	return usagef(c, "unknown verb %q", name)
}

// arguments checks how many there are; names describe them, those in brackets may be missing.
func arguments(c *cli.Context, names ...string) ([]string, error) {
	for i, name := range names {
		if i >= c.NArg() && !strings.HasPrefix(name, "[") {
			return nil, usagef(c, "%s is missing", name)
		}
	}
	if c.NArg() > len(names) {
		return nil, usagef(c, "unexpected argument %q", c.Args().Get(len(names)))
	}
	return c.Args().Slice(), nil
}

// loadConfig reads the node's configuration as --config names it.
func loadConfig(c *cli.Context) (config.Config, error) { return config.Load(c.String("config")) }

// connect opens the cluster that this host belongs to.
func (p *program) connect(c *cli.Context) (cluster, error) {
	cfg, err := loadConfig(c)
	if err != nil {
		return nil, err
	}
	return p.open(cfg)
}
