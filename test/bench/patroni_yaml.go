package main

import "text/template"

// patroniYAML is a node's configuration: Patroni's defaults, one synchronous standby as in Matriarch's default, checksums and connection
// limits as Matriarch sets them.
var patroniYAML = template.Must(template.New("patroni.yml").Parse(`scope: bench
namespace: /bench/
name: {{.Node.Name}}
restapi:
  listen: {{.Node.IP}}:8008
  connect_address: {{.Node.IP}}:8008
etcd3:
  hosts:
{{- range .Etcd}}
  - {{.}}
{{- end}}
citus:
  group: {{.Node.Group}}
  database: {{.Database}}
bootstrap:
  dcs:
    ttl: 30
    loop_wait: 10
    retry_timeout: 10
    maximum_lag_on_failover: 1048576
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        max_connections: 200
        max_prepared_transactions: 400
        wal_keep_size: 128MB
  initdb:
  - encoding: UTF8
  - locale: C.UTF-8
  - data-checksums
postgresql:
  listen: {{.Node.IP}}:6432
  connect_address: {{.Node.IP}}:6432
  data_dir: {{.Data}}
{{- if .Bin}}
  bin_dir: {{.Bin}}
{{- end}}
  pgpass: {{.Dir}}/pgpass
  authentication:
    superuser: {username: postgres, password: {{.Password}}}
    replication: {username: replicator, password: {{.Password}}}
    rewind: {username: rewinder, password: {{.Password}}}
  pg_hba:
  - local all all trust
  - host all all 127.0.0.0/8 scram-sha-256
  - host replication replicator 127.0.0.0/8 scram-sha-256
  parameters:
    password_encryption: scram-sha-256
    unix_socket_directories: {{.Dir}}
    citus.local_hostname: {{.Node.IP}}
`))
