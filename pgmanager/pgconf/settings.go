package pgconf

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Settings is everything that the managed configuration file depends on.
type Settings struct {
	Name            string            // cluster_name, shown in process titles
	Host            string            // address under which other nodes reach this PostgreSQL
	Port            int               // TCP port, also part of the socket's name
	ListenAddresses string            // as listen_addresses; empty means Host and loopback are up to the caller
	SocketDir       string            // folder of the Unix socket
	HBAFile         string            // absolute path of the generated pg_hba file
	SyncNames       string            // as SyncNames renders it; empty for none
	PrimaryConninfo string            // empty for a node without upstream
	PrimarySlotName string            // empty for none
	Citus           bool              // load Citus and set what it needs
	Databases       int               // Citus databases; each needs four more worker processes
	Links           uint64            // another value makes Citus' sessions give up their connections to other nodes
	TLS             *TLS              // nil leaves PostgreSQL's ssl to the user
	Secure          Security          // how Citus reaches other nodes
	Pooled          bool              // Citus' links lead to connection pools, which take no certificate of ours
	Parameters      map[string]string // the user's own; Validate tells which are refused
}

const (
	defaultMaxConnections = 200
	minSenders            = 8
	minSlots              = 16
	minWorkers            = 16

	// Citus compares the text of its links' conninfo, so the number that asks for new ones goes where it does no harm: into the
	// seconds before an idle connection is probed.
	keepalivesIdle = 60
	linksRange     = 600
)

// never are settings that nobody sets: they name files or targets that Matriarch decides by other means.
var never = map[string]string{
	"config_file":                "it is chosen by the manager's config_file",
	"data_directory":             "it is chosen by the manager's data_dir",
	"include":                    "put includes into postgresql.conf",
	"include_dir":                "put includes into postgresql.conf",
	"include_if_exists":          "put includes into postgresql.conf",
	"fsync":                      "without it a crash loses acknowledged writes",
	"full_page_writes":           "without it a crash can tear pages, and pg_rewind refuses",
	"promote_trigger_file":       "only the manager promotes",
	"recovery_target":            "a standby has to follow to the end",
	"recovery_target_action":     "a standby has to follow to the end",
	"recovery_target_inclusive":  "a standby has to follow to the end",
	"recovery_target_lsn":        "a standby has to follow to the end",
	"recovery_target_name":       "a standby has to follow to the end",
	"recovery_target_time":       "a standby has to follow to the end",
	"recovery_target_xid":        "a standby has to follow to the end",
	"allow_in_place_tablespaces": "clones would share them",
	"zero_damaged_pages":         "it destroys data silently",
	"ignore_checksum_failure":    "it spreads damaged data",
}

// fixed are the settings that Matriarch writes and the user may not, apart from those of TLS and Citus.
func (s Settings) fixed() map[string]string {
	m := map[string]string{
		"listen_addresses":             s.ListenAddresses,
		"port":                         strconv.Itoa(s.Port),
		"unix_socket_directories":      s.SocketDir,
		"hba_file":                     s.HBAFile,
		"cluster_name":                 s.Name,
		"wal_level":                    "logical",
		"hot_standby":                  "on",
		"wal_log_hints":                "on",
		"wal_retrieve_retry_interval":  "100ms",
		"wal_receiver_timeout":         "3s",
		"wal_receiver_status_interval": "1s",
		"wal_sender_timeout":           "5s",
		"synchronous_commit":           "on",
		"synchronous_standby_names":    s.SyncNames,
		"primary_conninfo":             s.PrimaryConninfo,
		"primary_slot_name":            s.PrimarySlotName,
		"recovery_target_timeline":     "latest",
		"restart_after_crash":          "off",
		"password_encryption":          "scram-sha-256",
		"log_destination":              "stderr",
		"logging_collector":            "off",
	}
	if s.TLS != nil {
		m["ssl"], m["ssl_cert_file"], m["ssl_key_file"], m["ssl_ca_file"] = "on", s.TLS.Server.Cert, s.TLS.Server.Key, s.TLS.CAFile
		m["ssl_crl_file"] = s.TLS.CRLFile
	}
	if s.Citus {
		m["citus.node_connection_timeout"] = "5s"
		m["citus.metadata_sync_retry_interval"] = "500ms"
		m["citus.recover_2pc_interval"] = "-1"
		m["citus.local_hostname"] = s.Host
		m["citus.node_conninfo"] = s.nodeConninfo()
	}
	return m
}

// nodeConninfo is how Citus reaches the other nodes; user, host and port are not among the keywords it allows.
func (s Settings) nodeConninfo() string {
	how := "sslmode=prefer"
	if s.Secure.Certificates() && s.TLS != nil && !s.Pooled {
		how = s.TLS.Link(s.TLS.Superuser).String()
	}
	return fmt.Sprintf("%s keepalives_idle=%d", how, keepalivesIdle+s.Links%linksRange)
}

// beatsUs reports whether a line of postgresql.auto.conf with this name has to go.
func beatsUs(name string) bool {
	if _, ok := never[name]; ok {
		return true
	}
	_, ok := Settings{TLS: &TLS{}, Citus: true}.fixed()[name]
	return ok || name == "shared_preload_libraries"
}

// floors are defaults that the user may raise but not lower.
func (s Settings) floors() map[string]int {
	m := map[string]int{"max_wal_senders": minSenders, "max_replication_slots": minSlots, "max_worker_processes": minWorkers}
	if s.Citus {
		m["max_worker_processes"] = minWorkers + 4*max(s.Databases, 1)
		m["max_prepared_transactions"] = 2 * s.maxConnections()
	}
	return m
}

func (s Settings) maxConnections() int {
	if n, err := strconv.Atoi(s.normal()["max_connections"]); err == nil {
		return n
	}
	return defaultMaxConnections
}

// normal returns the user's parameters under PostgreSQL's spelling.
func (s Settings) normal() map[string]string {
	m := make(map[string]string, len(s.Parameters))
	for _, k := range slices.Sorted(maps.Keys(s.Parameters)) { // one name in two spellings must not take turns
		m[strings.ToLower(strings.TrimSpace(k))] = s.Parameters[k]
	}
	return m
}

var namePattern = regexp.MustCompile(`^[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)?$`)

// Validate refuses user parameters that Matriarch sets itself or that would break a promise of it; one error per key.
func (s Settings) Validate() error {
	var errs []error
	fixed, floors, params := s.fixed(), s.floors(), s.normal()
	for _, k := range slices.Sorted(maps.Keys(params)) {
		v := params[k]
		switch {
		case !namePattern.MatchString(k):
			errs = append(errs, fmt.Errorf("parameter %q: not the name of a PostgreSQL setting", k))
		case strings.ContainsRune(v, 0):
			errs = append(errs, fmt.Errorf("parameter %s: its value contains a zero byte", k))
		case never[k] != "":
			errs = append(errs, fmt.Errorf("parameter %s: may not be set: %s; remove it", k, never[k]))
		default:
			if _, ok := fixed[k]; ok {
				errs = append(errs, fmt.Errorf("parameter %s: Matriarch sets it itself; remove it", k))
			}
		}
		if least, ok := floors[k]; ok {
			if n, err := strconv.Atoi(v); err != nil || n < least {
				errs = append(errs, fmt.Errorf("parameter %s: %q is too low here; want a number from %d, or remove it", k, v, least))
			}
		}
	}
	if n, err := strconv.Atoi(params["max_connections"]); params["max_connections"] != "" && (err != nil || n < 20) {
		errs = append(errs, fmt.Errorf("parameter max_connections: %q: want a number from 20", params["max_connections"]))
	}
	return errors.Join(errs...)
}

// Managed returns every setting of the managed file by name: defaults, the user's parameters over them, Matriarch's own
// over both.
func (s Settings) Managed() map[string]string {
	m := map[string]string{
		"max_connections": strconv.Itoa(defaultMaxConnections),
		"wal_keep_size":   "128MB",
	}
	for k, n := range s.floors() {
		m[k] = strconv.Itoa(n)
	}
	for k, v := range s.normal() {
		if never[k] == "" && namePattern.MatchString(k) {
			m[k] = v
		}
	}
	for k, n := range s.floors() {
		if v, err := strconv.Atoi(m[k]); err != nil || v < n {
			m[k] = strconv.Itoa(n)
		}
	}
	maps.Copy(m, s.fixed())
	if s.Citus {
		m["shared_preload_libraries"] = citusFirst(m["shared_preload_libraries"])
	}
	return m
}

// citusFirst puts Citus before the user's libraries: it refuses to load behind another library that hooks the planner.
func citusFirst(libs string) string {
	out := []string{"citus"}
	for l := range strings.SplitSeq(libs, ",") {
		if l = strings.TrimSpace(l); l != "" && strings.Trim(l, `"`) != "citus" {
			out = append(out, l)
		}
	}
	return strings.Join(out, ",")
}

// RenderManaged renders the file that postgresql.conf includes, in a stable order.
func RenderManaged(s Settings) []byte {
	var b strings.Builder
	b.WriteString("# Written by Matriarch; changes are overwritten. Set parameters in Matriarch's configuration.\n")
	m := s.Managed()
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%s = %s\n", k, QuoteSetting(m[k]))
	}
	return []byte(b.String())
}

// CommandLine returns the settings that the start command carries, where neither postgresql.conf nor ALTER SYSTEM beats
// them: they cannot change while PostgreSQL runs, and a wrong one takes the server out of the manager's hands.
func CommandLine(s Settings) []Setting {
	m := s.Managed()
	keys := []string{
		"listen_addresses", "port", "unix_socket_directories", "hba_file", "cluster_name", "wal_level", "hot_standby",
		"wal_log_hints", "recovery_target_timeline", "restart_after_crash", "logging_collector", "log_destination",
	}
	out := make([]Setting, 0, len(keys))
	for _, k := range keys {
		out = append(out, Setting{k, m[k]})
	}
	return out
}
