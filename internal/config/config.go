package config

import (
	"net"
	"path/filepath"
	"time"
)

// Config is a node's configuration. The tags are its description: `help` is the meaning of a key, `derived` says what an empty value
// becomes in Complete, `values` lists all that are allowed.
type Config struct {
	Node       Node       `yaml:"node"`
	Listen     string     `yaml:"listen" help:"Address and port for the other nodes: Raft, RPC, gossip and joining share it, all in mutual TLS."`
	Advertise  string     `yaml:"advertise,omitempty" derived:"listen; required if that is every address" help:"Address and port under which the other nodes reach listen."`
	API        API        `yaml:"api"`
	StateDir   string     `yaml:"state_dir" help:"Directory for everything of Matriarch's on this host; its subdirectory secrets holds the keys and passwords, mode 0600."`
	RaftDir    string     `yaml:"raft_dir,omitempty" derived:"<state_dir>/raft" help:"Directory of the replicated log. Best not on the disk of data_dir: a lease is only as steady as this fsync."`
	PostgreSQL PostgreSQL `yaml:"postgresql"`

	Certificates Certificates `yaml:"certificates"`

	Citus    Citus    `yaml:"citus"`
	Proxy    Proxy    `yaml:"proxy"`
	Log      Log      `yaml:"log"`
	Sentinel Sentinel `yaml:"sentinel,omitempty"`
	Hooks    Hooks    `yaml:"hooks"`
	Stop     Stop     `yaml:"stop"`
	Peers    []string `yaml:"peers,omitempty" help:"Addresses of known nodes, written by join. For information and first contact only; the replicated state is what counts."`
}

// Node says who this node is.
type Node struct {
	ID    string `yaml:"id" help:"UUID of this node, drawn by bootstrap or join. Never changed, never copied to another host."`
	Name  string `yaml:"name" help:"Name people use for this node: 1 to 40 of a-z, 0-9 and hyphen; unique in the cluster."`
	Group int    `yaml:"group" help:"Group this node's PostgreSQL belongs to: 0 is the coordinator, 1, 2, 3 ... are workers."`
	Zone  string `yaml:"zone,omitempty" help:"Failure zone (rack, data centre): voters are spread over zones."`
	Tags  Tags   `yaml:"tags"`
}

// Tags steer what this node is chosen for. User holds all further tags, which mean nothing to Matriarch.
type Tags struct {
	NoFailover       bool              `yaml:"nofailover" help:"Never make this node a primary."`
	NoSync           bool              `yaml:"nosync" help:"Never count this node among those that acknowledge commits."`
	NoLoadBalance    bool              `yaml:"noloadbalance" help:"Answer 503 to GET /replica, so that load balancers send no reads here; the proxies send none either."`
	CloneFrom        bool              `yaml:"clonefrom" help:"Prefer this standby as the source of new nodes' clones, to spare the primary."`
	FailoverPriority int               `yaml:"failover_priority" help:"Among equally good candidates the greatest becomes primary; 0 means never (0 to 1000)."`
	SyncPriority     int               `yaml:"sync_priority" help:"In groups of mode on, the standbys with the greatest confirm commits while they are connected (0 to 1000)."`
	User             map[string]string `yaml:",inline" help:"Any further tag of your own; shown by list and the API."`
}

// API is the HTTP interface for people, load balancers and monitoring.
type API struct {
	Listen    string `yaml:"listen" help:"Address and port of the HTTP API and the health checks."`
	Advertise string `yaml:"advertise,omitempty" derived:"host of advertise, port of api.listen" help:"Address and port under which others reach the API."`

	Reads        string   `yaml:"reads" values:"open closed" help:"closed: everything but the status of health checks needs a credential."`
	Writes       string   `yaml:"writes" values:"off on" help:"on: whoever shows a credential may POST /switchover, /failover, /restart and /reinitialize, DELETE /switchover and PATCH /config. Needs tls."`
	Allow        []string `yaml:"allow,omitempty" help:"Addresses and networks of the clients that are answered; empty: all."`
	RateLimit    int      `yaml:"rate_limit" help:"Requests a second that one address may make, and twice that at once; 0: no limit."`
	TLS          string   `yaml:"tls" values:"off on" help:"on: HTTPS, with cert_file, or with this node's own server certificate, which the cluster's CA signs."`
	CertFile     string   `yaml:"cert_file,omitempty" help:"Certificate of your own for HTTPS, with its chain. Read again when it changes."`
	KeyFile      string   `yaml:"key_file,omitempty" help:"Key of cert_file."`
	ClientCAFile string   `yaml:"client_ca_file,omitempty" help:"CA whose client certificates are a credential. Read again when it changes."`
	TokenFile    string   `yaml:"token_file,omitempty" help:"File with a bearer token, which is a credential; at least 20 characters. Read again when it changes."`
	Username     string   `yaml:"username,omitempty" help:"User name of basic authentication, as Patroni's clients send it: with the password a credential."`
	PasswordFile string   `yaml:"password_file,omitempty" help:"File with the password of username. Read again when it changes."`
}

// PostgreSQL describes the one server of this node.
type PostgreSQL struct {
	BinDir          string            `yaml:"bin_dir,omitempty" derived:"found: the newest of 14 to 18" help:"Directory of postgres, initdb and the other programs; all of them are taken from here."`
	DataDir         string            `yaml:"data_dir,omitempty" derived:"<state_dir>/pgdata" help:"PostgreSQL's data directory. Nothing of Matriarch's is kept inside."`
	Listen          string            `yaml:"listen" help:"Address and port of PostgreSQL."`
	Advertise       string            `yaml:"advertise,omitempty" derived:"host of advertise, port of postgresql.listen" help:"Address and port under which clients, standbys and Citus reach PostgreSQL."`
	User            string            `yaml:"user,omitempty" derived:"postgres when run as root, else the current user" help:"Operating system user that PostgreSQL runs as."`
	SocketDir       string            `yaml:"socket_dir,omitempty" derived:"<state_dir>/run" help:"Directory of PostgreSQL's Unix socket (at most 92 bytes). /run/postgresql is where Debian's psql looks."`
	Superuser       string            `yaml:"superuser" help:"Database superuser that Matriarch and Citus log in as."`
	ReplicationUser string            `yaml:"replication_user" help:"Database user that standbys stream as."`
	Parameters      map[string]string `yaml:"parameters,omitempty" help:"Settings for postgresql.conf. Those that Matriarch manages are refused."`
	HBA             []string          `yaml:"hba,omitempty" derived:"scram-sha-256 from everywhere" help:"Lines of pg_hba.conf for clients, after those that Matriarch needs."`
	SetAsideLimit   int               `yaml:"set_aside_limit" help:"Data directories that clones leave aside, at most; 0: no limit. Beyond it the oldest goes if all of it came from a primary, and else a clone is refused."`
	LogFile         string            `yaml:"log_file,omitempty" derived:"<state_dir>/postgresql.log" help:"File for what the server prints."`
}

// Certificates says what this node's certificates are like. Empty files: all are Matriarch's own.
type Certificates struct {
	Lifetime time.Duration `yaml:"lifetime" help:"How long a new certificate of this node is valid; it is renewed after two thirds of that."`
	Names    []string      `yaml:"names,omitempty" help:"Further host names and addresses under which clients reach this PostgreSQL, for its server certificate."`
	CertFile string        `yaml:"cert_file,omitempty" help:"Server certificate of your own for PostgreSQL, with its chain. It must name the host of postgresql.advertise, and ca_file its CA. Read again when it changes; what does not fit is refused, and what was in use stays."`
	KeyFile  string        `yaml:"key_file,omitempty" help:"Key of cert_file."`
	CAFile   string        `yaml:"ca_file,omitempty" help:"CA of your own that signs PostgreSQL's certificates, trusted beside the cluster's; the same on all nodes. Whoever it signs a client certificate for may log in under that name where pg_hba.conf says cert."`
}

// Citus switches the extension.
type Citus struct {
	Enabled bool `yaml:"enabled" help:"Load the Citus extension and keep its metadata right. The same on all nodes."`
}

// Proxy lets clients reach the server of the right role through this node. The limits hold for each listener by itself.
type Proxy struct {
	Coordinator    ProxyListener `yaml:"coordinator"`
	Worker         ProxyListener `yaml:"worker"`
	Standby        ProxyStandby  `yaml:"standby"`
	MaxConnections int           `yaml:"max_connections" help:"Connections at the same time on each listener, those that wait for a server included."`
	MaxPerClient   int           `yaml:"max_per_client" help:"Of these, from one client address; 0: no limit of its own."`
	WaitLimit      time.Duration `yaml:"wait_limit" help:"Longest time that a new connection waits for a server, for instance during a switchover; then it is refused (57P03)."`
	ConnectTimeout time.Duration `yaml:"connect_timeout" help:"Longest time for one attempt to connect to a server, and for that server's first answer."`
	ProxyProtocol  bool          `yaml:"proxy_protocol" help:"Every connection begins with a PROXY header of version 2, which a load balancer in front must send. Whoever reaches the port can claim any address."`
}

// ProxyListener is one port of the proxy. Empty: it is not opened.
type ProxyListener struct {
	Listen string `yaml:"listen" help:"Address and port through which clients reach the primary of that kind: the coordinator's, or any worker's. Empty: off."`
}

// ProxyStandby is the port for readers.
type ProxyStandby struct {
	Listen      string `yaml:"listen" help:"Address and port through which clients reach standbys. Empty: off."`
	Groups      string `yaml:"groups" values:"coordinator workers all" help:"Whose standbys take readers."`
	MaxLagBytes int    `yaml:"max_lag_bytes" help:"A standby with more than this left to replay gets no new readers; 0: no limit. Positions are reported every 5 s."`
}

// Listeners lists the proxy's ports that are opened, by the kind of server that they lead to.
func (p Proxy) Listeners() map[string]string {
	out := map[string]string{}
	for kind, addr := range map[string]string{"coordinator": p.Coordinator.Listen, "worker": p.Worker.Listen, "standby": p.Standby.Listen} {
		if addr != "" {
			out[kind] = addr
		}
	}
	return out
}

// Log describes the program's own log, on standard error.
type Log struct {
	Level  string `yaml:"level" values:"debug info warn error" help:"Least severe level that is logged."`
	Format string `yaml:"format" values:"auto json text" help:"auto: text on a terminal, else JSON."`
}

// Sentinel is the small process that is PostgreSQL's parent.
type Sentinel struct {
	Socket string `yaml:"socket,omitempty" derived:"<state_dir>/sentinel.sock" help:"Unix socket between agent and sentinel (at most 107 bytes)."`

	Watchdog       string `yaml:"watchdog" values:"off automatic required" help:"Whether the machine is reset at the end of a lease when the sentinel cannot fence. automatic: if the device can be had; required: no primary here without it."`
	WatchdogDevice string `yaml:"watchdog_device" help:"Device of the kernel's watchdog. It needs a driver (softdog, or better the hardware's) without nowayout, and nobody else who uses it."`
}

// Hooks are commands of the operator's, run as the user that PostgreSQL runs as. Empty: none.
type Hooks struct {
	PrePromote   []string      `yaml:"pre_promote,omitempty" help:"Command and arguments, run before this node is promoted. Not zero: it gives its lease back, and another node is tried."`
	FenceCommand []string      `yaml:"fence_command,omitempty" help:"Command and arguments, run before this node is promoted in place of another that did not give its lease back, to make sure of that one's end; MATRIARCH_OLD_PRIMARY names it."`
	FenceFailure string        `yaml:"fence_failure" values:"refuse ignore" help:"When fence_command fails. refuse: this node gives its lease back; ignore: it is promoted all the same, as the lease alone is proof enough."`
	OnRoleChange []string      `yaml:"on_role_change,omitempty" help:"Command and arguments, run after this node became primary or standby. Nothing waits for it."`
	Timeout      time.Duration `yaml:"timeout" help:"Longest time for one run of a hook; then it is killed, and counts as failed."`
}

// Stop is how a node ends in good order, as systemctl stop and a shutdown of the host ask for.
type Stop struct {
	HandoverTimeout time.Duration `yaml:"handover_timeout" help:"How long a primary about to stop tries to switch its group over first, so that clients see no error; 0: not at all. Then, or without a standby that fits, PostgreSQL is stopped and the lease given back."`
}

// Default is what an empty file says; derived values are still empty, see Complete.
func Default() Config {
	return Config{
		Node:     Node{Tags: Tags{FailoverPriority: 1}},
		Listen:   "0.0.0.0:7400",
		API:      API{Listen: "0.0.0.0:8008", Reads: "open", Writes: "off", RateLimit: 200, TLS: "off"},
		StateDir: "/var/lib/matriarch",
		PostgreSQL: PostgreSQL{
			Listen:          "0.0.0.0:5432",
			Superuser:       "postgres",
			ReplicationUser: "matriarch_replication",
			SetAsideLimit:   2,
		},
		Certificates: Certificates{Lifetime: 365 * 24 * time.Hour},

		Citus: Citus{Enabled: true},
		Proxy: Proxy{
			Standby: ProxyStandby{Groups: "coordinator", MaxLagBytes: 16 << 20}, MaxConnections: 1000, WaitLimit: 10 * time.Second, ConnectTimeout: 3 * time.Second,
		},
		Log:      Log{Level: "info", Format: "auto"},
		Sentinel: Sentinel{Watchdog: "off", WatchdogDevice: "/dev/watchdog"},
		Hooks:    Hooks{FenceFailure: "refuse", Timeout: 10 * time.Second},
		Stop:     Stop{HandoverTimeout: 30 * time.Second},
	}
}

// Complete returns c with every empty value filled in that follows from others; nothing follows from a value that is itself wrong.
// bin_dir, user and hba stay empty: they follow from the machine or belong to the server's own rules.
func (c Config) Complete() Config {
	fill := func(value *string, derived string) {
		if *value == "" {
			*value = derived
		}
	}
	if !everyAddress(c.Listen) {
		fill(&c.Advertise, c.Listen)
	}
	fill(&c.API.Advertise, joinHostPort(c.Advertise, c.API.Listen))
	fill(&c.PostgreSQL.Advertise, joinHostPort(c.Advertise, c.PostgreSQL.Listen))
	if goodPath(c.StateDir) {
		fill(&c.RaftDir, filepath.Join(c.StateDir, "raft"))
		fill(&c.PostgreSQL.DataDir, filepath.Join(c.StateDir, "pgdata"))
		fill(&c.PostgreSQL.SocketDir, filepath.Join(c.StateDir, "run"))
		fill(&c.PostgreSQL.LogFile, filepath.Join(c.StateDir, "postgresql.log"))
		fill(&c.Sentinel.Socket, filepath.Join(c.StateDir, "sentinel.sock"))
	}
	return c
}

// SecretsDir is the directory, mode 0700, of the node's key and certificate, the CA and the generated passwords, each in a file of mode 0600.
func (c Config) SecretsDir() string { return filepath.Join(c.StateDir, "secrets") }

// joinHostPort takes the host of one address and the port of another; "" unless both can be had.
func joinHostPort(hostOf, portOf string) string {
	host, _, err1 := net.SplitHostPort(hostOf)
	_, port, err2 := net.SplitHostPort(portOf)
	if err1 != nil || err2 != nil || !validHost(host) || !validPort(port) {
		return ""
	}
	return net.JoinHostPort(host, port)
}

// everyAddress reports whether a listen address stands for all of the host's addresses, so that others cannot dial it.
func everyAddress(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return true
	}
	ip := net.ParseIP(host)
	return host == "" || (ip != nil && ip.IsUnspecified())
}
