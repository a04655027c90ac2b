package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/pgmanager"
)

// hostFlags describe a host that is about to become a node.
func hostFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "name of this node, unique in the cluster", DefaultText: "the host's name"},
		&cli.IntFlag{Name: "group", Usage: "group of this node: 0 is the coordinator, 1, 2, 3 ... are workers"},
		&cli.StringFlag{Name: "zone", Usage: "failure zone: voters are spread over zones"},
		&cli.StringFlag{Name: "listen", Usage: "`HOST:PORT` for the other nodes", Value: config.Default().Listen},
		&cli.StringFlag{Name: "advertise", Usage: "`HOST:PORT` under which the other nodes reach it", DefaultText: "listen, or this host's first address"},
		&cli.StringFlag{Name: "api", Usage: "`HOST:PORT` of the HTTP API", Value: config.Default().API.Listen},
		&cli.StringFlag{Name: "pg-listen", Usage: "`HOST:PORT` of PostgreSQL", Value: config.Default().PostgreSQL.Listen},
		&cli.StringFlag{Name: "proxy-coordinator", Usage: "`HOST:PORT` through which clients reach the coordinator's primary", DefaultText: "off"},
		&cli.StringFlag{Name: "proxy-worker", Usage: "`HOST:PORT` through which clients reach any worker's primary", DefaultText: "off"},
		&cli.StringFlag{Name: "proxy-standby", Usage: "`HOST:PORT` through which clients reach the coordinator's standbys", DefaultText: "off"},
		&cli.StringFlag{Name: "pg-bin", Usage: "`DIR` of PostgreSQL's programs", DefaultText: "the distribution's"},
		&cli.StringFlag{Name: "state-dir", Usage: "`DIR` for everything of Matriarch's on this host", Value: config.Default().StateDir},
		&cli.StringFlag{Name: "data-dir", Usage: "PostgreSQL's data `DIR`", DefaultText: "pgdata in the state directory"},
		&cli.StringFlag{Name: "pg-user", Usage: "operating system `USER` that PostgreSQL runs as", DefaultText: "postgres when run as root"},
		&cli.StringSliceFlag{Name: "tag", Usage: "`KEY=VALUE`: nofailover, nosync, noloadbalance, clonefrom, failover_priority, sync_priority, or your own; repeatable"},
		&cli.BoolFlag{Name: "no-citus", Usage: "plain PostgreSQL, without the Citus extension"},
	}
}

// hostConfig turns the flags into a configuration, which Save validates.
func hostConfig(c *cli.Context) (config.Config, error) {
	cfg := config.Default()
	cfg.Listen, cfg.Advertise, cfg.API.Listen, cfg.PostgreSQL.Listen = c.String("listen"), c.String("advertise"), c.String("api"), c.String("pg-listen")
	cfg.StateDir, cfg.PostgreSQL.BinDir, cfg.PostgreSQL.DataDir, cfg.PostgreSQL.User = c.String("state-dir"), c.String("pg-bin"), c.String("data-dir"), c.String("pg-user")
	cfg.Proxy.Coordinator.Listen, cfg.Proxy.Worker.Listen, cfg.Proxy.Standby.Listen = c.String("proxy-coordinator"), c.String("proxy-worker"), c.String("proxy-standby")
	cfg.Node.Group, cfg.Node.Zone = c.Int("group"), c.String("zone")
	cfg.Citus.Enabled = !c.Bool("no-citus")
	if cfg.Node.Name = c.String("name"); cfg.Node.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return cfg, fmt.Errorf("find this host's name: %w: give one with --name", err)
		}
		cfg.Node.Name, _, _ = strings.Cut(strings.ToLower(name), ".")
	}
	for _, path := range []*string{&cfg.StateDir, &cfg.PostgreSQL.DataDir, &cfg.PostgreSQL.BinDir} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return cfg, fmt.Errorf("path %s: %w", *path, err)
		}
		*path = abs
	}
	if err := applyTags(&cfg, c.StringSlice("tag")); err != nil {
		return cfg, err
	}
	return cfg, chooseAdvertise(&cfg)
}

func applyTags(cfg *config.Config, tags []string) error {
	t := &cfg.Node.Tags
	for _, kv := range tags {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return fmt.Errorf("tag %q: want KEY=VALUE", kv)
		}
		flags := map[string]*bool{"nofailover": &t.NoFailover, "nosync": &t.NoSync, "noloadbalance": &t.NoLoadBalance, "clonefrom": &t.CloneFrom}
		if f, ok := flags[k]; ok {
			if v != "true" && v != "false" {
				return fmt.Errorf("tag %s: want true or false, not %q", k, v)
			}
			*f = v == "true"
			continue
		}
		numbers := map[string]*int{"failover_priority": &t.FailoverPriority, "sync_priority": &t.SyncPriority}
		if n, ok := numbers[k]; ok {
			if _, err := fmt.Sscanf(v, "%d", n); err != nil {
				return fmt.Errorf("tag %s: %q is not a number", k, v)
			}
			continue
		}
		if t.User == nil {
			t.User = map[string]string{}
		}
		t.User[k] = v
	}
	return nil
}

// chooseAdvertise finds the address others use when the node listens on all.
func chooseAdvertise(cfg *config.Config) error {
	host, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return fmt.Errorf("--listen %s: want HOST:PORT", cfg.Listen)
	}
	if cfg.Advertise != "" {
		return nil
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("find this host's address: %w: give one with --advertise", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			cfg.Advertise = net.JoinHostPort(n.IP.String(), port)
			return nil
		}
	}
	return errors.New("this host has no address that others could reach: give one with --advertise HOST:PORT")
}

// checkHost looks for everything that would stop the node later, and changes nothing. PostgreSQL's port may be in use by the
// server to be adopted.
func checkHost(cfg config.Config, adopt bool) (pgmanager.Tools, error) {
	done := cfg.Complete()
	done.Node.ID = "00000000-0000-4000-8000-000000000000" // drawn later
	var errs []error
	if err := done.Validate(); err != nil {
		errs = append(errs, err)
	}
	tools, err := pgmanager.Find(done.PostgreSQL.BinDir)
	if err != nil {
		errs = append(errs, err)
	}
	ports := [][2]string{{"--listen", done.Listen}, {"--api", done.API.Listen}}
	for kind, addr := range done.Proxy.Listeners() {
		ports = append(ports, [2]string{"--proxy-" + kind, addr})
	}
	if !adopt {
		ports = append(ports, [2]string{"--pg-listen", done.PostgreSQL.Listen})
	}
	for _, l := range ports {
		ln, err := net.Listen("tcp", l[1]) //nolint:noctx // a look whether the port is free
		if err != nil {
			errs = append(errs, portInUse(err, l[0], l[1]))
			continue
		}
		errs = append(errs, ln.Close())
	}
	errs = append(errs, writable(done.StateDir))
	return tools, errors.Join(errs...)
}

// writable reports whether a directory can be made or written, by its nearest existing parent.
func writable(dir string) error {
	for p := dir; ; p = filepath.Dir(p) {
		st, err := os.Stat(p)
		if errors.Is(err, fs.ErrNotExist) && p != "/" {
			continue
		}
		if err != nil {
			return fmt.Errorf("state directory %s: %w", dir, err)
		}
		if !st.IsDir() {
			return fmt.Errorf("state directory %s: %s is not a directory", dir, p)
		}
		probe, err := os.CreateTemp(p, ".matriarch-probe-")
		if err != nil {
			return fmt.Errorf("state directory %s: %s cannot be written: %w: run as root, or choose another with --state-dir", dir, p, err)
		}
		return errors.Join(probe.Close(), os.Remove(probe.Name()))
	}
}

// newPassword draws 192 random bits.
func newPassword() string {
	b := make([]byte, 24)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// member refuses a host that belongs to a cluster already.
func member(dir identity.Dir) error {
	if !dir.Exists() {
		return nil
	}
	id, err := dir.Load()
	if err != nil {
		return err
	}
	return fmt.Errorf("this host is node %s of cluster %s already (state directory %s): nothing was changed", id.Name, id.ClusterID, dir)
}

// saveConfig writes the node's configuration, on a fresh host into a new directory.
func saveConfig(cfg config.Config, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // the file itself is private
		return fmt.Errorf("make the configuration's directory: %w", err)
	}
	return cfg.Save(path)
}
