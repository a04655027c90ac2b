package main

import (
	"context"
	"maps"
	"net"
	"slices"
	"time"

	"matriarch/fsm"
	"matriarch/internal/certificates"
	"matriarch/internal/config"
	"matriarch/pgmanager"
)

// certificates makes the keeper of this node's certificates, and what must be there before PostgreSQL starts.
func (n *node) certificates(ctx context.Context, pg pgmanager.Config) error {
	cfg := certificates.Config{
		Dir: n.dir, Self: n.id, TLS: n.tls, IPs: addresses(n.cfg.Advertise, n.cfg.PostgreSQL.Advertise), Host: pg.Host, Hosts: serverNames(n.cfg),
		Super: pg.Superuser, Repl: pg.ReplicationUser, Life: n.cfg.Certificates.Lifetime, Removed: n.removed, Log: n.log,
		Own: certificates.Own{CertFile: n.cfg.Certificates.CertFile, KeyFile: n.cfg.Certificates.KeyFile, CAFile: n.cfg.Certificates.CAFile},
	}
	if pg.TLS {
		cfg.Postgres = n.pg
	} else {
		n.log.Warn("the server keeps the certificates that postgresql.parameters names: this server is no part of postgresql_tls until they are removed there")
	}
	n.certs = certificates.New(cfg)
	for _, use := range certificates.Uses(pg.TLS) {
		n.metrics.Certificate(use, func() time.Time { return n.certs.Expires(use) })
	}
	return n.certs.Ensure(ctx)
}

// serverNames are the names and addresses under which PostgreSQL is reached.
func serverNames(cfg config.Config) []string {
	names := append([]string{cfg.Node.Name}, cfg.Certificates.Names...)
	for _, addr := range []string{cfg.PostgreSQL.Advertise, cfg.Advertise} {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			names = append(names, host)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// removed lists the nodes whose certificates count no more.
func (n *node) removed() (uuids []string, known bool) {
	s := n.consensus.State()
	for _, id := range slices.Sorted(maps.Keys(s.Removed)) {
		uuids = append(uuids, string(id))
	}
	return uuids, s.Cluster.ID != ""
}

// linkSecurity is how links to other servers prove themselves now.
func (n *node) linkSecurity() fsm.LinkSecurity {
	return n.consensus.State().Cluster.Settings.PostgresTLS.Or()
}
