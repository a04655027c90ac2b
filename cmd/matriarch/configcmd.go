package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/config"
)

func (p *program) configVerb() *cli.Command {
	return &cli.Command{
		Name: "config", Usage: "check this node's file, show and change the cluster's settings", Category: "Change",
		Description: "This node's file says who it is and where things are; the cluster's settings are the same everywhere and change live.\nExample:\n   matriarch config show",
		Subcommands: []*cli.Command{
			{
				Name: "validate", Usage: "check a node's configuration file", ArgsUsage: "[FILE]",
				Description: "Names every mistake with its line and the remedy.\nExample:\n   matriarch config validate /etc/matriarch/matriarch.yml",
				Action:      p.configValidate,
			},
			{
				Name: "show", Usage: "show the cluster's settings and this node's configuration",
				Description: "Shows both with everything filled in that follows from other values.\nExample:\n   matriarch config show --output yaml",
				Action:      p.configShow,
			},
			{
				Name: "set", Usage: "change settings of the cluster", ArgsUsage: "KEY=VALUE ...",
				Description: settingsHelp() + "With --group, the policy of one group:\n" +
					"   mode                 quorum: a commit waits for any of the standbys; on: for the first by tag sync_priority; off: for none, and a failover may lose it\n" +
					"   strict               true: commits wait while too few standbys are there, instead of going on\n" +
					"   synchronous_node_count  how many standbys confirm a commit\n" +
					"   maximum_lag_on_syncnode bytes that a synchronous standby may lack before it leaves the set; 0: any\n" +
					"   paused               true: no automatic change of primary\n" +
					"   early_failover       false: a failover always waits for the end of the lease\n" +
					"   failsafe             true: without a Raft majority the primary stays up as long as every member of the group answers it\n" +
					"   failover_on_sick     false: a primary that is sick (full, hung or read-only disk, hung server) stays primary while it lives\n" +
					"Example:\n   matriarch config set ttl=6s degrade_after=3s\n   matriarch config set --group 2 mode=off\n   matriarch config set --group 1 mode=on strict=true synchronous_node_count=2",
				Flags:  []cli.Flag{&cli.IntFlag{Name: "group", Usage: "the `GROUP` whose policy to change"}},
				Action: p.configSet,
			},
		},
	}
}

func settingsHelp() string {
	var b strings.Builder
	b.WriteString("The keys:\n")
	for _, s := range admin.ClusterSettings() {
		fmt.Fprintf(&b, "   %-20s %s\n", s.Key, s.Help)
	}
	return b.String()
}

func (p *program) configValidate(c *cli.Context) error {
	args, err := arguments(c, "[FILE]")
	if err != nil {
		return err
	}
	file := c.String("config")
	if len(args) > 0 {
		file = args[0]
	}
	if _, err := config.Load(file); err != nil {
		return err
	}
	return done(c, "%s is valid", file)
}

// configView is all that holds for a node.
type configView struct {
	Cluster map[string]string `json:"cluster"`
	Node    map[string]any    `json:"node"`
}

func (p *program) configShow(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	cl, err := p.open(cfg)
	if err != nil {
		return err
	}
	defer cl.Close()
	st, err := cl.Status(c.Context)
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("show configuration: %w", err)
	}
	v := configView{Cluster: map[string]string{}}
	if err := yaml.Unmarshal(text, &v.Node); err != nil {
		return fmt.Errorf("show configuration: %w", err)
	}
	for _, s := range admin.ClusterSettings() {
		v.Cluster[s.Key] = s.Get(st.State.Cluster.Settings)
	}
	return emit(c, v, func(w io.Writer) {
		renderSettings(w, st.State.Cluster.Settings)
		fmt.Fprintf(w, "\nThis node, %s with everything filled in:\n%s", c.String("config"), text)
	})
}

func renderSettings(w io.Writer, s fsm.Settings) {
	var rows [][]string
	for _, x := range admin.ClusterSettings() {
		rows = append(rows, []string{x.Key, x.Get(s), x.Get(fsm.DefaultSettings()), x.Help})
	}
	grid(w, "", []string{"Setting", "Value", "Default", "Meaning"}, rows, -1)
}

func (p *program) configSet(c *cli.Context) error {
	if c.NArg() == 0 {
		return usagef(c, "KEY=VALUE is missing")
	}
	if c.IsSet("group") {
		return p.groupSet(c)
	}
	probe := fsm.DefaultSettings()
	for _, a := range c.Args().Slice() {
		if err := admin.SetSetting(&probe, a); err != nil {
			return usagef(c, "%v", err)
		}
	}
	cl, err := p.connect(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	st, err := cl.Formation(c.Context)
	if err != nil {
		return err
	}
	s := st.State.Cluster.Settings
	for _, a := range c.Args().Slice() {
		if err := admin.SetSetting(&s, a); err != nil {
			return usagef(c, "%v", err)
		}
	}
	if err := submit(c, cl, admin.Request{SettingsPut: &fsm.SettingsPut{Settings: s}}); err != nil {
		return err
	}
	return done(c, "set %s", strings.Join(c.Args().Slice(), " "))
}

// groupSet changes the policy of one group.
func (p *program) groupSet(c *cli.Context) error {
	set := fsm.GroupSet{Group: fsm.GroupID(c.Int("group")), By: operator()}
	for _, a := range c.Args().Slice() {
		if err := policy(&set, a); err != nil {
			return usagef(c, "%v", err)
		}
	}
	cl, err := p.connect(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := submit(c, cl, admin.Request{GroupSet: &set}); err != nil {
		return err
	}
	return done(c, "set %s for group %d", strings.Join(c.Args().Slice(), " "), set.Group)
}

// policy reads one KEY=VALUE of a group.
func policy(set *fsm.GroupSet, assignment string) error {
	key, value, _ := strings.Cut(assignment, "=")
	flags := map[string]**bool{"paused": &set.Paused, "early_failover": &set.Early, "failsafe": &set.Failsafe, "failover_on_sick": &set.Sick, "strict": &set.Strict}
	switch f, flag := flags[key]; {
	case flag && (value == "true" || value == "false"):
		*f = new(value == "true")
	case flag:
		return fmt.Errorf("%s must be true or false, not %q", key, value)
	case key == "mode" && fsm.Mode(value).Known():
		set.Mode = fsm.Mode(value)
	case key == "mode":
		return fmt.Errorf("mode must be quorum, on or off, not %q", value)
	case key == "synchronous_node_count":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > fsm.MaxSyncCount {
			return fmt.Errorf("synchronous_node_count must be 1 to %d, not %q", fsm.MaxSyncCount, value)
		}
		set.SyncCount = &n
	case key == "maximum_lag_on_syncnode":
		n, err := admin.ParseBytes(value)
		if err != nil {
			return fmt.Errorf("maximum_lag_on_syncnode: %w", err)
		}
		set.SyncLag = &n
	default:
		return fmt.Errorf("%s: a group has mode=quorum|on|off, paused=true|false, early_failover=true|false, failsafe=true|false, failover_on_sick=true|false, strict=true|false, synchronous_node_count=N and maximum_lag_on_syncnode=SIZE", assignment)
	}
	return nil
}
