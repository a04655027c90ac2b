package main

import (
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/urfave/cli/v2"

	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/pgmanager"
)

// adoptedSuperuser is the role that an adopted database gets for us: no role that is there is touched.
const adoptedSuperuser = "matriarch"

// adoptExisting makes an existing data directory, running or stopped, fit to be run by this node, and fills in what the
// configuration has to say about it.
func adoptExisting(c *cli.Context, cfg *config.Config, dir identity.Dir) error {
	cfg.PostgreSQL.Superuser = adoptedSuperuser
	pgcfg, err := postgresConfig(cfg.Complete(), dir)
	if err != nil {
		return err
	}
	pgcfg.TLS = false // no certificates before the node runs
	m, err := pgmanager.New(pgcfg, slog.New(slog.NewTextHandler(c.App.ErrWriter, nil)))
	if err != nil {
		return err
	}
	defer m.Close()
	a, err := m.AdoptCheck(c.Context)
	if err != nil {
		return err
	}
	cfg.PostgreSQL.HBA, cfg.PostgreSQL.Parameters, cfg.PostgreSQL.SocketDir = a.HBA, a.Parameters, a.SocketDir
	if a.TLS.CertFile != "" {
		cfg.Certificates.CertFile, cfg.Certificates.KeyFile, cfg.Certificates.CAFile = a.TLS.CertFile, a.TLS.KeyFile, a.TLS.CAFile
	}
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("what was found cannot be configured: %w", err)
	}
	if err := m.Adopt(c.Context, a); err != nil {
		return err
	}
	for _, n := range a.Notes {
		fmt.Fprintln(c.App.ErrWriter, "note:", n)
	}
	return nil
}

// access is how every node of a cluster gets into PostgreSQL, and lets clients in; a join passes it on.
type access struct {
	Superuser       string   `json:"superuser"`
	ReplicationUser string   `json:"replication_user"`
	HBA             []string `json:"hba,omitempty"`
	Citus           bool     `json:"citus"` // the same on all nodes
}

func accessOf(cfg config.Config) (json.RawMessage, error) {
	b, err := json.Marshal(access{cfg.PostgreSQL.Superuser, cfg.PostgreSQL.ReplicationUser, cfg.PostgreSQL.HBA, cfg.Citus.Enabled})
	if err != nil {
		return nil, fmt.Errorf("encode the access to PostgreSQL: %w", err)
	}
	return b, nil
}

// takeAccess configures what the cluster says. The roles belong to the passwords; lines set by hand stay.
func takeAccess(cfg *config.Config, settings json.RawMessage) error {
	if len(settings) == 0 {
		return nil
	}
	a := access{Citus: cfg.Citus.Enabled}
	if err := json.Unmarshal(settings, &a); err != nil {
		return fmt.Errorf("read the cluster's access to PostgreSQL: %w", err)
	}
	if a.Superuser != "" && a.ReplicationUser != "" {
		cfg.PostgreSQL.Superuser, cfg.PostgreSQL.ReplicationUser = a.Superuser, a.ReplicationUser
	}
	if len(cfg.PostgreSQL.HBA) == 0 {
		cfg.PostgreSQL.HBA = a.HBA
	}
	cfg.Citus.Enabled = a.Citus
	return nil
}
