package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/transport"
)

func bootstrapVerb() *cli.Command {
	return &cli.Command{
		Name:  "bootstrap",
		Usage: "make this host the first node of a new cluster",
		Description: "Makes the cluster's CA and passwords, writes the configuration file and prints one line that makes any other host join.\n" +
			"Example: matriarch bootstrap --name coord-1 --advertise 10.0.0.11:7400",
		Flags: append(hostFlags(),
			&cli.StringSliceFlag{Name: "database", Usage: "database that every group has; repeatable", Value: cli.NewStringSlice(fsm.DefaultSettings().Databases...)},
			&cli.DurationFlag{Name: "ttl", Usage: "length of a primary's lease", Value: fsm.DefaultSettings().TTL},
			&cli.BoolFlag{Name: "adopt", Usage: "take over the PostgreSQL that is in the data directory, running or stopped"},
			&cli.DurationFlag{Name: "token-ttl", Usage: "how long the printed join token is good", Value: 24 * time.Hour},
			&cli.IntFlag{Name: "token-uses", Usage: "how many hosts may use it", Value: 50}),
		Action: bootstrap,
	}
}

type bootstrapResult struct {
	ClusterID string `json:"cluster_id" yaml:"cluster_id"`
	NodeID    string `json:"node_id" yaml:"node_id"`
	Config    string `json:"config" yaml:"config"`
	Token     string `json:"token" yaml:"token"`
	Join      string `json:"join" yaml:"join"`
}

func bootstrap(c *cli.Context) error {
	cfg, err := hostConfig(c)
	if err != nil {
		return err
	}
	dir := identity.Dir(cfg.StateDir)
	if err := member(dir); err != nil {
		return err
	}
	if free, err := config.Free(c.String("config")); err != nil {
		return err
	} else if !free {
		return fmt.Errorf("%s exists: bootstrap writes this file; move it away, or name another with --config", c.String("config"))
	}
	if _, err := checkHost(cfg, c.Bool("adopt")); err != nil {
		return err
	}
	full := cfg.Complete()
	if c.Duration("ttl") < fsm.MinTTL {
		return fmt.Errorf("--ttl %s: at least %s, or one change of the Raft leader stops every primary", c.Duration("ttl"), fsm.MinTTL)
	}
	if err := checkDataForBootstrap(full.PostgreSQL.DataDir, c.Bool("adopt")); err != nil {
		return err
	}
	m, err := newMembership(&cfg, c)
	if err != nil {
		return err
	}
	if err := m.write(dir); err != nil {
		return err
	}
	if c.Bool("adopt") {
		if err := adoptExisting(c, &cfg, dir); err != nil {
			return errors.Join(err, m.undo(dir))
		}
	}
	if err := saveConfig(cfg, c.String("config")); err != nil {
		return errors.Join(fmt.Errorf("write the configuration: %w", err), m.undo(dir))
	}
	return m.print(c, full)
}

// checkDataForBootstrap refuses to begin a new database beside an old one.
func checkDataForBootstrap(dataDir string, adopt bool) error {
	entries, err := os.ReadDir(dataDir)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("data directory: %w", err)
	case !adopt && len(entries) > 0:
		return fmt.Errorf("data directory %s is not empty: take it over with --adopt, or move it away", dataDir)
	case adopt && len(entries) == 0:
		return fmt.Errorf("data directory %s is empty: there is nothing to adopt", dataDir)
	}
	return nil
}

// membership is all that makes a host the first node.
type membership struct {
	id       identity.Identity
	material identity.Material
	secrets  map[string]string
	first    fsm.Bootstrap
	token    string
}

func newMembership(cfg *config.Config, c *cli.Context) (membership, error) {
	now := time.Now()
	cluster, nodeID := uuid.NewString(), uuid.NewString()
	cfg.Node.ID = nodeID
	full := cfg.Complete()
	m := membership{
		id:      identity.Identity{ClusterID: cluster, Incarnation: 1, NodeID: fsm.NodeID(nodeID), Name: cfg.Node.Name},
		secrets: map[string]string{identity.Superuser: newPassword(), identity.Replication: newPassword()},
	}
	ca, err := transport.NewCA(cluster, now)
	if err != nil {
		return m, fmt.Errorf("make the CA: %w", err)
	}
	key, csr, err := transport.NewKeyAndCSR()
	if err != nil {
		return m, fmt.Errorf("make the node's key: %w", err)
	}
	cert, err := ca.SignCSR(csr, nodeID, cfg.Node.Name, addresses(full.Advertise, full.PostgreSQL.Advertise), now)
	if err != nil {
		return m, fmt.Errorf("sign the node's certificate: %w", err)
	}
	caKey, err := ca.KeyPEM()
	if err != nil {
		return m, fmt.Errorf("make the CA: %w", err)
	}
	m.material = identity.Material{Cert: cert, Key: key, CA: ca.CertPEM(), CAKey: caKey}
	expires := now.Add(c.Duration("token-ttl"))
	t := transport.NewToken(cluster, ca.Fingerprint(), expires, full.Advertise)
	if m.token, err = t.Encode(); err != nil {
		return m, fmt.Errorf("make the join token: %w", err)
	}
	set := fsm.DefaultSettings()
	set.TTL, set.Databases, set.Citus = c.Duration("ttl"), c.StringSlice("database"), !c.Bool("no-citus")
	if c.Bool("adopt") { // who uses the server now goes on as before
		set.PostgresTLS = ""
	}
	m.first = fsm.Bootstrap{
		ClusterID: cluster, Incarnation: 1, Settings: set, Node: nodeOf(full, fsm.NodeID(nodeID)),
		Token: &fsm.Token{ID: t.ID, Hash: transport.HashSecret(t.Secret), Expires: expires.UTC().Truncate(time.Second), Uses: c.Int("token-uses"), Made: now.UTC().Truncate(time.Second)},
	}
	return m, nil
}

// addresses are the IPs among the advertised addresses, for the certificate.
func addresses(hostPorts ...string) []net.IP {
	var out []net.IP
	for _, hp := range hostPorts {
		host, _, err := net.SplitHostPort(hp)
		if ip := net.ParseIP(host); err == nil && ip != nil {
			out = append(out, ip)
		}
	}
	return out
}

// write puts everything in place; identity.json comes last and makes it count.
func (m membership) write(dir identity.Dir) error {
	if err := dir.SaveMaterial(m.material); err != nil {
		return err
	}
	if err := dir.SaveSecrets(m.secrets); err != nil {
		return err
	}
	b, err := json.Marshal(m.first)
	if err != nil {
		return fmt.Errorf("encode the first command: %w", err)
	}
	if err := renameio.WriteFile(bootstrapFile(dir), b, 0o600); err != nil {
		return fmt.Errorf("write the first command: %w", err)
	}
	return dir.Save(m.id)
}

// undo takes back what write did, so that a failed bootstrap can be repeated.
func (m membership) undo(dir identity.Dir) error {
	return errors.Join(
		os.Remove(dir.File()), os.Remove(bootstrapFile(dir)),
		os.RemoveAll(filepath.Dir(dir.CAFile())), os.RemoveAll(filepath.Dir(dir.SecretFile(identity.Superuser))),
	)
}

func (m membership) print(c *cli.Context, cfg config.Config) error {
	r := bootstrapResult{
		ClusterID: m.id.ClusterID, NodeID: string(m.id.NodeID), Config: c.String("config"), Token: m.token,
		Join: fmt.Sprintf("matriarch join %s --token %s", cfg.Advertise, m.token),
	}
	return output(c, r, func() {
		fmt.Fprintf(c.App.Writer, "cluster %s is ready to run; its first node is %s, group %d\n", r.ClusterID, m.id.Name, cfg.Node.Group)
		fmt.Fprintf(c.App.Writer, "configuration  %s\n", r.Config)
		fmt.Fprintf(c.App.Writer, "start it with  matriarch run --config %s\n\n", r.Config)
		fmt.Fprintf(c.App.Writer, "on every other host (%d uses, until %s; add --name and --group):\n  %s\n", m.first.Token.Uses, m.first.Token.Expires.Local().Format("2006-01-02 15:04"), r.Join)
	})
}

func bootstrapFile(dir identity.Dir) string { return filepath.Join(string(dir), "bootstrap.json") }

// loadBootstrap reads the first command of a cluster that has not begun.
func loadBootstrap(dir identity.Dir) (first fsm.Bootstrap, pending bool, err error) {
	b, err := os.ReadFile(bootstrapFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return first, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &first)
	}
	if err != nil {
		return first, false, fmt.Errorf("read the first command: %w", err)
	}
	return first, true, nil
}

func dropBootstrap(dir identity.Dir) error {
	if err := os.Remove(bootstrapFile(dir)); err != nil {
		return fmt.Errorf("forget the first command: %w", err)
	}
	return nil
}
