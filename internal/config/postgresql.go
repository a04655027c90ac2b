package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

func (ps *problems) postgresql(p PostgreSQL) {
	if p.User != "" && !osUser.MatchString(p.User) {
		ps.add("postgresql.user", "%q is no name of an operating system user", p.User)
	}
	if p.User == "root" {
		ps.add("postgresql.user", "PostgreSQL refuses to run as root: set postgres")
	}
	for _, r := range []struct{ path, value string }{{"postgresql.superuser", p.Superuser}, {"postgresql.replication_user", p.ReplicationUser}} {
		if !roleName.MatchString(r.value) || strings.HasPrefix(r.value, "pg_") {
			ps.add(r.path, "%q must be 1 to 63 of a-z, 0-9 and underscore, not start with a digit or pg_", r.value)
		}
	}
	if p.Superuser == p.ReplicationUser {
		ps.add("postgresql.replication_user", "must not be the superuser %q: standbys get a role of their own", p.Superuser)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Parameters)) {
		if path := "postgresql.parameters." + name; !parameter.MatchString(name) {
			ps.add(path, "is no name of a PostgreSQL setting")
		} else if strings.ContainsAny(p.Parameters[name], "\n\r\x00") {
			ps.add(path, "must be one line")
		}
	}
	for i, line := range p.HBA {
		if strings.TrimSpace(line) == "" || strings.ContainsAny(line, "\n\r\x00") {
			ps.add(fmt.Sprintf("postgresql.hba[%d]", i), "must be one line of pg_hba.conf, for instance host all all 10.0.0.0/8 scram-sha-256")
		}
	}
}
