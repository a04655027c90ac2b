package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/pgmanager"
	"matriarch/transport"
)

func joinVerb() *cli.Command {
	return &cli.Command{
		Name:      "join",
		Usage:     "make this host a node of an existing cluster",
		ArgsUsage: "ADDRESS",
		Description: "Checks the cluster's CA by the token's fingerprint, gets a certificate and writes the configuration file. It may be repeated.\n" +
			"Example: matriarch join 10.0.0.11:7400 --token mt1.... --name work1-1 --group 1",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "rebalance", Usage: "move shards to this host's group once it is registered with Citus; without: 'matriarch citus rebalance' does, later"},
			&cli.StringFlag{Name: "token", Usage: "join token, as bootstrap or `matriarch token create` printed it", EnvVars: []string{"MATRIARCH_TOKEN"}},
			&cli.StringFlag{Name: "token-file", Usage: "`FILE` with the token, so that it is on no command line; -: standard input"},
		}, hostFlags()...),
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return usagef(c, "join takes one address, not also %q", c.Args().Get(1))
			}
			return join(c)
		},
	}
}

const joinLimit = 30 * time.Second

func join(c *cli.Context) error {
	token, err := joinToken(c)
	if err != nil {
		return err
	}
	addr := c.Args().First()
	if addr == "" {
		addr = token.Server
	}
	if addr == "" {
		return usagef(c, "join needs the address of a node of the cluster")
	}
	cfg, err := hostConfig(c)
	if err != nil {
		return err
	}
	if old, err := config.Load(c.String("config")); err == nil && !c.IsSet("state-dir") {
		cfg.StateDir = old.StateDir // a repeated join need not name it again
	}
	dir := identity.Dir(cfg.StateDir)
	again, err := joinedBefore(dir, token, &cfg, c)
	if err != nil {
		return err
	}
	tools, err := hostTools(cfg, again)
	if err != nil {
		return err
	}
	d, err := openDraft(dir)
	if err != nil {
		return err
	}
	if again == "" {
		again = d.NodeID
	}
	cfg.Node.ID = again
	ctx, cancel := context.WithTimeout(c.Context, joinLimit)
	defer cancel()
	req, err := joinRequest(cfg.Complete(), d, tools.Version.Major())
	if err != nil {
		return err
	}
	res, err := transport.Join(ctx, transport.TCP{Source: sourceIP(cfg.Listen)}, addr, token, req)
	if err != nil {
		return err
	}
	if err := settle(dir, &cfg, d, res); err != nil {
		return err
	}
	if err := saveConfig(cfg, c.String("config")); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	if c.Bool("rebalance") {
		if err := os.WriteFile(rebalanceFile(dir), nil, 0o600); err != nil {
			return fmt.Errorf("note the wish for a rebalance (the node has joined; 'matriarch citus rebalance' does it later): %w", err)
		}
	}
	r := map[string]string{"cluster_id": res.ClusterID, "node_id": cfg.Node.ID, "config": c.String("config")}
	return output(c, r, func() {
		fmt.Fprintf(c.App.Writer, "%s is a node of cluster %s, group %d\nconfiguration  %s\nstart it with  matriarch run --config %s\n", cfg.Node.Name, res.ClusterID, cfg.Node.Group, c.String("config"), c.String("config"))
	})
}

// joinToken is the token, from wherever it was put.
func joinToken(c *cli.Context) (transport.Token, error) {
	text, file := c.String("token"), c.String("token-file")
	switch {
	case file == "" && text == "":
		return transport.Token{}, usagef(c, "--token is missing")
	case file == "":
		return transport.ParseToken(text)
	case c.IsSet("token") && text != "":
		return transport.Token{}, usagef(c, "--token and --token-file are two ways to say the same: use one")
	}
	in := c.App.Reader
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return transport.Token{}, fmt.Errorf("read the join token: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxToken))
	if err != nil {
		return transport.Token{}, fmt.Errorf("read the join token: %w", err)
	}
	return transport.ParseToken(strings.TrimSpace(string(b)))
}

// maxToken is more than any token has, in bytes.
const maxToken = 16 << 10

// joinedBefore lets a join be repeated: the same node renews its certificate. Another cluster's state is never overwritten.
func joinedBefore(dir identity.Dir, token transport.Token, cfg *config.Config, c *cli.Context) (nodeID string, err error) {
	if !dir.Exists() {
		if free, err := config.Free(c.String("config")); err != nil {
			return "", err
		} else if !free {
			return "", fmt.Errorf("%s exists, but the state directory %s belongs to no cluster: move the file away, or name another with --config", c.String("config"), dir)
		}
		return "", nil
	}
	id, err := dir.Load()
	if err != nil {
		return "", err
	}
	if id.ClusterID != token.ClusterID {
		return "", fmt.Errorf("this host is node %s of cluster %s; the token is for cluster %s: nothing was changed", id.Name, id.ClusterID, token.ClusterID)
	}
	if old, err := config.Load(c.String("config")); err == nil { // what was configured by hand since stays
		if (c.IsSet("name") && c.String("name") != old.Node.Name) || (c.IsSet("group") && c.Int("group") != old.Node.Group) {
			return "", fmt.Errorf("this host is node %s of group %d already and cannot become %s of group %d: nothing was changed; take it out with `matriarch remove %s` first, then join with an empty state directory", old.Node.Name, old.Node.Group, cfg.Node.Name, cfg.Node.Group, old.Node.Name)
		}
		*cfg = old
	}
	return string(id.NodeID), nil
}

// hostTools checks the host before a first join; a repeated one finds its own ports in use.
func hostTools(cfg config.Config, again string) (pgmanager.Tools, error) {
	if again != "" {
		return pgmanager.Find(cfg.PostgreSQL.BinDir)
	}
	return checkHost(cfg, false)
}

// draft is what must not change between two tries of one join: else the first would have taken the name.
type draft struct {
	NodeID string `json:"node_id"`
	Key    []byte `json:"key"`
	CSR    []byte `json:"csr"`
}

func draftFile(dir identity.Dir) string { return filepath.Join(string(dir), "join.json") }

func openDraft(dir identity.Dir) (d draft, err error) {
	b, err := os.ReadFile(draftFile(dir))
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &d); err != nil {
			return d, fmt.Errorf("read %s: %w: remove it and join again", draftFile(dir), err)
		}
		return d, nil
	case !errors.Is(err, fs.ErrNotExist):
		return d, fmt.Errorf("read the unfinished join: %w", err)
	}
	d.NodeID = uuid.NewString()
	if d.Key, d.CSR, err = transport.NewKeyAndCSR(); err != nil {
		return d, fmt.Errorf("make the node's key: %w", err)
	}
	if b, err = json.Marshal(d); err != nil {
		return d, fmt.Errorf("encode the join: %w", err)
	}
	if err := os.MkdirAll(string(dir), 0o755); err != nil { //nolint:gosec // PostgreSQL's user passes through it
		return d, fmt.Errorf("make the state directory: %w", err)
	}
	if err := renameio.WriteFile(draftFile(dir), b, 0o600); err != nil {
		return d, fmt.Errorf("begin the join: %w", err)
	}
	return d, nil
}

func joinRequest(cfg config.Config, d draft, pgMajor int) (transport.JoinRequest, error) {
	data, err := pgmanager.DataSystemID(cfg.PostgreSQL.DataDir)
	n := nodeOf(cfg, fsm.NodeID(cfg.Node.ID))
	return transport.JoinRequest{
		NodeID: cfg.Node.ID, Name: n.Name, CSR: d.CSR, Group: int(n.Group), Zone: n.Zone, Tags: tagsToWire(n.Tags), Version: version, Commands: fsm.Protocol,
		Addresses: transport.Addresses{Peer: n.Peer, PG: n.Postgres, API: n.API}, Now: time.Now(), PGVersion: pgMajor, SystemID: data,
	}, err
}

// leaveOldLog sets the Raft log of an older incarnation aside. It names the voters of then: two nodes that kept theirs would
// elect each other and overwrite what was recovered.
func leaveOldLog(dir identity.Dir, raftDir string, incarnation uint64) error {
	if !dir.Exists() {
		return nil
	}
	id, err := dir.Load()
	if err != nil {
		return err
	}
	if id.Incarnation == incarnation {
		return nil
	}
	aside := fmt.Sprintf("%s.incarnation-%d-%s", raftDir, id.Incarnation, time.Now().UTC().Format("20060102T150405"))
	if err := os.Rename(raftDir, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set the log of incarnation %d aside: %w", id.Incarnation, err)
	}
	return nil
}

// settle makes this host what the cluster answered.
func settle(dir identity.Dir, cfg *config.Config, d draft, res transport.JoinResponse) error {
	if err := takeAccess(cfg, res.Settings); err != nil {
		return err
	}
	if err := leaveOldLog(dir, cfg.Complete().RaftDir, res.Incarnation); err != nil {
		return err
	}
	return enter(dir, *cfg, d, res)
}

// enter writes what the cluster gave; identity.json comes last.
func enter(dir identity.Dir, cfg config.Config, d draft, res transport.JoinResponse) error {
	if err := dir.SaveMaterial(identity.Material{Cert: res.CertPEM, Key: d.Key, CA: res.CAPEM, CAKey: res.CAKeyPEM}); err != nil {
		return err
	}
	var rot identity.Rotation
	if r := res.Rotation; r != nil {
		rot = identity.Rotation{NextCert: r.NextCA, NextKey: r.NextCAKey, OldCert: r.OldCA, OldKey: r.OldCAKey}
	}
	if err := dir.SaveRotation(rot); err != nil {
		return err
	}
	if err := dir.SaveSecrets(res.Secrets); err != nil {
		return err
	}
	var peers []identity.Peer
	for _, p := range res.Peers {
		peers = append(peers, identity.Peer{ID: fsm.NodeID(p.NodeID), Name: p.Name, Addr: p.Addr})
	}
	if err := dir.SavePeers(peers); err != nil {
		return err
	}
	id := identity.Identity{ClusterID: res.ClusterID, Incarnation: res.Incarnation, NodeID: fsm.NodeID(cfg.Node.ID), Name: cfg.Node.Name}
	if err := dir.Save(id); err != nil {
		return err
	}
	if err := os.Remove(draftFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end the join: %w", err)
	}
	return nil
}
