package main

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/pgmanager"
)

// sourceIP is the address that outgoing connections leave from, when the node listens on one address only.
func sourceIP(listen string) net.IP {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return nil
	}
	ip := net.ParseIP(host)
	if ip == nil || ip.IsUnspecified() {
		return nil
	}
	return ip
}

func postgresConfig(cfg config.Config, dir identity.Dir) (pgmanager.Config, error) {
	super, err := dir.Secret(identity.Superuser)
	if err != nil {
		return pgmanager.Config{}, err
	}
	repl, err := dir.Secret(identity.Replication)
	if err != nil {
		return pgmanager.Config{}, err
	}
	p := cfg.PostgreSQL
	host, _, err := net.SplitHostPort(p.Advertise)
	if err != nil {
		return pgmanager.Config{}, fmt.Errorf("postgresql.advertise: %w", err)
	}
	listen, port, err := net.SplitHostPort(p.Listen)
	if err != nil {
		return pgmanager.Config{}, fmt.Errorf("postgresql.listen: %w", err)
	}
	num, err := strconv.Atoi(port)
	if err != nil {
		return pgmanager.Config{}, fmt.Errorf("postgresql.listen: %w", err)
	}
	if ip := net.ParseIP(listen); listen == "" || (ip != nil && ip.IsUnspecified()) {
		listen = "*"
	}
	return pgmanager.Config{
		BinDir: p.BinDir, DataDir: p.DataDir, RunDir: filepath.Join(cfg.StateDir, "pg"), SocketDir: p.SocketDir, Host: host, Port: num,
		ListenAddresses: listen, User: p.User, Superuser: p.Superuser, ReplicationUser: p.ReplicationUser, SuperuserPassword: super,
		ReplicationPassword: repl, Name: cfg.Node.Name, Parameters: p.Parameters, HBA: p.HBA, Citus: cfg.Citus.Enabled, LogFile: p.LogFile,
		SetAsideLimit: p.SetAsideLimit, TLS: !ownSSL(p.Parameters), ForeignCA: cfg.Certificates.CAFile != "",
	}, nil
}

// ownSSL reports whether the operator set PostgreSQL's ssl settings by hand, which then stay as they are.
func ownSSL(parameters map[string]string) bool {
	for name := range parameters {
		switch strings.ToLower(name) {
		case "ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file":
			return true
		}
	}
	return false
}
