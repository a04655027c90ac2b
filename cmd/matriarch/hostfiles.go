package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"

	"matriarch/internal/admin"
	"matriarch/internal/bundle"
	"matriarch/internal/config"
	"matriarch/internal/doctor"
	"matriarch/internal/identity"
	"matriarch/transport"
)

const (
	tailOf      = 512 << 10 // bytes of each log
	filePatient = 10 * time.Second
)

// hostFiles are the texts about this host that a support bundle holds; what could not be had is told in errors.txt. Secrets may still be in
// them: see redactorOf.
type hostFiles struct {
	files map[string]string
	errs  []string
}

func (h *hostFiles) add(name, text string, err error) {
	if err != nil {
		h.errs = append(h.errs, fmt.Sprintf("%s: %v", name, err))
	}
	if text != "" {
		h.files[name] = strings.ToValidUTF8(text, "?")
	}
}

// gatherFiles asks nobody but this host.
func gatherFiles(ctx context.Context, q doctor.Request, examine func(context.Context, doctor.Request) doctor.Facts) map[string]string {
	h := &hostFiles{files: map[string]string{}}
	cfg, m := q.Config, doctor.Local{}
	var found bytes.Buffer
	facts := examine(ctx, q)
	renderFindings(&found, doctor.Examine(facts))
	h.add("doctor.txt", found.String(), nil)
	text, err := yaml.Marshal(cfg)
	h.add("matriarch.yml", string(text), err)
	h.add("version.txt", version+"\n", nil)

	h.add("logs/postgresql.log", "", addTail(h, "logs/postgresql.log", cfg.PostgreSQL.LogFile))
	h.add("logs/sentinel.log", "", addTail(h, "logs/sentinel.log", filepath.Join(cfg.StateDir, "sentinel.log")))
	journal, err := m.Output(ctx, "", "journalctl", "--unit", "matriarch", "--lines", "3000", "--no-pager", "--output", "short-iso-precise", "--quiet")
	h.add("logs/journal.txt", lastBytes(journal), err)
	for _, f := range []string{"/proc/meminfo", "/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory", "/proc/mounts", "/proc/loadavg", "/proc/version"} {
		b, err := m.ReadFile(f)
		h.add("host"+f, string(b), err)
	}
	metrics, err := fetchMetrics(ctx, cfg.API.Listen)
	h.add("metrics.txt", metrics, err)

	if facts.PostgreSQL.Dir != "" {
		out, err := m.Output(ctx, facts.User, filepath.Join(facts.PostgreSQL.Dir, "pg_controldata"), "-D", cfg.PostgreSQL.DataDir)
		h.add("postgresql/pg_controldata.txt", out, err)
	}
	tables, err := serverTables(ctx, cfg)
	h.add("postgresql", "", err)
	for name, text := range tables {
		h.add("postgresql/"+name+".tsv", text, nil)
	}
	if len(h.errs) > 0 {
		h.files["errors.txt"] = "What could not be had:\n" + strings.Join(h.errs, "\n") + "\n"
	}
	return h.files
}

func addTail(h *hostFiles, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err != nil {
		return err
	} else if _, err := f.Seek(max(0, end-tailOf), io.SeekStart); err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(f, tailOf))
	h.add(name, string(b), nil)
	return err
}

func lastBytes(s string) string { return s[max(0, len(s)-tailOf):] }

// fetchMetrics asks this node's own port, as Prometheus does.
func fetchMetrics(ctx context.Context, listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, filePatient)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("answered %s", resp.Status)
	}
	return string(b), err
}

// tables are what the server is asked. Settings that hold connection strings or commands for secrets are named without their value.
var tables = map[string]string{
	"settings": `SELECT name, CASE WHEN name ~* '(conninfo|passphrase|password$|secret)' AND setting <> '' THEN '` + bundle.Removed + `' ELSE setting END AS setting,
		unit, source, sourcefile, pending_restart FROM pg_settings WHERE source <> 'default' OR pending_restart ORDER BY name`,
	"hba":         `SELECT line_number, type, database, user_name, address, netmask, auth_method, error FROM pg_hba_file_rules ORDER BY 1`,
	"replication": `SELECT pid, application_name, client_addr, state, sync_state, sent_lsn, write_lsn, flush_lsn, replay_lsn, reply_time FROM pg_stat_replication`,
	"slots":       `SELECT slot_name, slot_type, active, restart_lsn, wal_status, safe_wal_size FROM pg_replication_slots`,
	"activity": `SELECT backend_type, state, wait_event_type, wait_event, count(*), max(now() - xact_start) AS oldest FROM pg_stat_activity
		GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC`,
	"databases": `SELECT datname, pg_database_size(oid) AS bytes, age(datfrozenxid) FROM pg_database WHERE datallowconn`,
}

// serverTables asks PostgreSQL, if it runs here.
func serverTables(ctx context.Context, cfg config.Config) (map[string]string, error) {
	pg, err := postgresConfig(cfg, identity.Dir(cfg.StateDir))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, filePatient)
	defer cancel()
	cc, err := pgx.ParseConfig(fmt.Sprintf("host='%s' port=%d dbname=postgres sslmode=disable", pg.SocketDir, pg.Port))
	if err != nil {
		return nil, err
	}
	cc.User, cc.Password, cc.ConnectTimeout = pg.Superuser, pg.SuperuserPassword, 3*time.Second
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	out := map[string]string{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		text, err := tsv(ctx, conn, tables[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		out[name] = text
	}
	return out, errors.Join(errs...)
}

func tsv(ctx context.Context, conn *pgx.Conn, query string) (string, error) {
	rows, err := conn.Query(ctx, query, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var b strings.Builder
	for _, f := range rows.FieldDescriptions() {
		b.WriteString(f.Name + "\t")
	}
	b.WriteString("\n")
	for rows.Next() {
		for _, v := range rows.RawValues() {
			b.WriteString(strings.NewReplacer("\t", " ", "\n", " ").Replace(string(v)) + "\t")
		}
		b.WriteString("\n")
	}
	return b.String(), rows.Err()
}

// redactorOf knows every secret of this host by heart.
func redactorOf(dir identity.Dir) (*bundle.Redactor, error) {
	var secrets []string
	files, err := filepath.Glob(filepath.Join(config.Config{StateDir: string(dir)}.SecretsDir(), "*"))
	if err != nil {
		return nil, err
	}
	for _, f := range append(files, dir.KeyFile(), dir.CAKeyFile()) {
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the secrets that must not get out: %w: run as the user that runs the node", err)
		}
		secrets = append(secrets, string(b))
	}
	return bundle.NewRedactor(secrets), nil
}

// support answers another host's support-bundle. Secrets are taken out before anything leaves this host.
func (n *node) support(ctx context.Context, _ transport.Peer, _ struct{}) (admin.SupportFiles, error) {
	redact, err := redactorOf(n.dir)
	if err != nil {
		return admin.SupportFiles{}, err
	}
	q := doctor.Request{Config: n.cfg, Configured: true, AgentPID: os.Getpid(), Find: findPrograms}
	files := gatherFiles(ctx, q, gatherHere)
	for name, text := range files {
		files[name] = string(redact.Clean([]byte(text)))
	}
	return admin.SupportFiles{Files: files}, nil
}
