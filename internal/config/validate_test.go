package config

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestValidateAccepts(t *testing.T) {
	for name, change := range map[string]func(c *Config){
		"the smallest":           func(*Config) {},
		"names as addresses":     func(c *Config) { c.Advertise, c.Peers = "db-1.example.org:7400", []string{"n2:1", "x_y:65535"} },
		"IPv6":                   func(c *Config) { c.Listen, c.Advertise = "[::]:7400", "[2001:db8::1]:7400" },
		"no host to listen on":   func(c *Config) { c.Listen = ":7400" },
		"loopback":               func(c *Config) { c.Listen, c.Advertise = "127.0.0.2:7400", "" },
		"one port, other hosts":  func(c *Config) { c.Listen, c.API.Listen = "127.0.0.2:7400", "127.0.0.3:7400" },
		"raft on its own disk":   func(c *Config) { c.RaftDir = "/raft" },
		"similar names of paths": func(c *Config) { c.PostgreSQL.DataDir, c.RaftDir = "/var/lib/m", "/var/lib/m-raft" },
		"tags of one's own":      func(c *Config) { c.Node.Tags.User = map[string]string{"rack": "7", "example.org/disk": "nvme"} },
		"a worker":               func(c *Config) { c.Node.Group = 42 },
		"longest socket_dir":     func(c *Config) { c.PostgreSQL.SocketDir = "/" + strings.Repeat("s", 91) },
		"longest sentinel":       func(c *Config) { c.Sentinel.Socket = "/" + strings.Repeat("s", 106) },
		"extension's parameter":  func(c *Config) { c.PostgreSQL.Parameters = map[string]string{"pg_stat_statements.max": "10"} },
		"longest name":           func(c *Config) { c.Node.Name = strings.Repeat("a", 40) },
		"all proxies": func(c *Config) {
			c.Proxy.Coordinator.Listen, c.Proxy.Worker.Listen, c.Proxy.Standby.Listen = ":6433", ":6434", ":6435"
		},
		"priority 0": func(c *Config) { c.Node.Tags.FailoverPriority = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			c := valid()
			change(&c)
			if err := c.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestValidateRefuses: each case breaks one thing, and exactly one error names it, with its YAML path first.
func TestValidateRefuses(t *testing.T) {
	long := "/" + strings.Repeat("s", 107)
	for name, tc := range map[string]struct {
		change func(c *Config)
		want   string
	}{
		"no id":                     {func(c *Config) { c.Node.ID = "" }, "node.id: is missing"},
		"id no UUID":                {func(c *Config) { c.Node.ID = "n1" }, "node.id: "},
		"id in upper case":          {func(c *Config) { c.Node.ID = strings.ToUpper(c.Node.ID) }, "node.id: "},
		"id in braces":              {func(c *Config) { c.Node.ID = "{" + c.Node.ID + "}" }, "node.id: "},
		"no name":                   {func(c *Config) { c.Node.Name = "" }, "node.name: is missing"},
		"name in upper case":        {func(c *Config) { c.Node.Name = "N1" }, "node.name: "},
		"name with dot":             {func(c *Config) { c.Node.Name = "n1.example" }, "node.name: "},
		"name too long":             {func(c *Config) { c.Node.Name = strings.Repeat("a", 41) }, "node.name: "},
		"negative group":            {func(c *Config) { c.Node.Group = -1 }, "node.group: "},
		"zone with space":           {func(c *Config) { c.Node.Zone = "a b" }, "node.zone: "},
		"priority too great":        {func(c *Config) { c.Node.Tags.FailoverPriority = 1001 }, "node.tags.failover_priority: "},
		"negative priority":         {func(c *Config) { c.Node.Tags.FailoverPriority = -1 }, "node.tags.failover_priority: "},
		"mistyped tag":              {func(c *Config) { c.Node.Tags.User = map[string]string{"nofailovr": "true"} }, "node.tags.nofailovr: did you mean nofailover?"},
		"tag with space":            {func(c *Config) { c.Node.Tags.User = map[string]string{"a b": ""} }, "node.tags.a b: "},
		"listen without port":       {func(c *Config) { c.Listen = "0.0.0.0" }, "listen: "},
		"listen port 0":             {func(c *Config) { c.Listen = "0.0.0.0:0" }, "listen: port"},
		"listen port too great":     {func(c *Config) { c.Listen = "0.0.0.0:65536" }, "listen: port"},
		"listen named port":         {func(c *Config) { c.API.Listen = "0.0.0.0:http" }, "api.listen: port"},
		"IPv6 without brackets":     {func(c *Config) { c.Listen = "2001:db8::1:7400" }, "listen: "},
		"not an IP address":         {func(c *Config) { c.Advertise = "10.0.0.300:7400" }, "advertise: "},
		"host with space":           {func(c *Config) { c.Advertise = "a b:7400" }, "advertise: "},
		"nothing to dial":           {func(c *Config) { c.Advertise = "" }, "advertise: is missing"},
		"advertise everywhere":      {func(c *Config) { c.Advertise = "0.0.0.0:7400"; c.advertiseRest() }, "advertise: "},
		"advertise without host":    {func(c *Config) { c.Advertise = ":7400"; c.advertiseRest() }, "advertise: "},
		"bad peer":                  {func(c *Config) { c.Peers = []string{"n2:7400", "n3"} }, "peers[1]: "},
		"api on the peers' port":    {func(c *Config) { c.API.Listen = "127.0.0.1:7400" }, "api.listen: 127.0.0.1:7400 is taken by listen"},
		"postgresql on api's port":  {func(c *Config) { c.PostgreSQL.Listen = c.API.Listen }, "postgresql.listen: "},
		"proxy without port":        {func(c *Config) { c.Proxy.Worker.Listen = "10.0.0.1" }, "proxy.worker.listen: "},
		"proxy on the server's":     {func(c *Config) { c.Proxy.Coordinator.Listen = "127.0.0.1:5432" }, "proxy.coordinator.listen: 127.0.0.1:5432 is taken by postgresql.listen"},
		"two proxies on one port":   {func(c *Config) { c.Proxy.Worker.Listen, c.Proxy.Standby.Listen = ":6434", ":6434" }, "proxy.standby.listen: :6434 is taken by proxy.worker.listen"},
		"proxy for nobody":          {func(c *Config) { c.Proxy.MaxConnections = 0 }, "proxy.max_connections: 0 must be 1 to 100000"},
		"fewer than none":           {func(c *Config) { c.Proxy.MaxPerClient = -1 }, "proxy.max_per_client: "},
		"proxy waits for ever":      {func(c *Config) { c.Proxy.WaitLimit = time.Hour }, "proxy.wait_limit: 1h0m0s must be 100ms to 10m0s"},
		"no time to connect":        {func(c *Config) { c.Proxy.ConnectTimeout = 0 }, "proxy.connect_timeout: "},
		"negative lag":              {func(c *Config) { c.Proxy.Standby.MaxLagBytes = -1 }, "proxy.standby.max_lag_bytes: "},
		"unknown standbys":          {func(c *Config) { c.Proxy.Standby.Groups = "some" }, "proxy.standby.groups: "},
		"relative state_dir":        {func(c *Config) { *c = c.Complete(); c.StateDir = "state" }, "state_dir: "},
		"unclean raft_dir":          {func(c *Config) { c.RaftDir = "/raft/../raft" }, "raft_dir: "},
		"bin_dir relative":          {func(c *Config) { c.PostgreSQL.BinDir = "bin" }, "postgresql.bin_dir: "},
		"root as log_file":          {func(c *Config) { c.PostgreSQL.LogFile = "/" }, "postgresql.log_file: "},
		"data in raft":              {func(c *Config) { c.RaftDir, c.PostgreSQL.DataDir = "/r", "/r/data" }, "postgresql.data_dir: /r/data is inside raft_dir"},
		"raft in data":              {func(c *Config) { c.RaftDir, c.PostgreSQL.DataDir = "/d/raft", "/d" }, "raft_dir: /d/raft is inside postgresql.data_dir"},
		"log in data":               {func(c *Config) { c.PostgreSQL.DataDir, c.PostgreSQL.LogFile = "/d", "/d/log" }, "postgresql.log_file: "},
		"sentinel in data":          {func(c *Config) { c.PostgreSQL.DataDir, c.Sentinel.Socket = "/d", "/d/s" }, "sentinel.socket: "},
		"sockets in data":           {func(c *Config) { c.PostgreSQL.DataDir, c.PostgreSQL.SocketDir = "/d", "/d/s" }, "postgresql.socket_dir: "},
		"state is raft":             {func(c *Config) { *c = c.Complete(); c.RaftDir = "/raft"; c.StateDir = "/raft" }, "raft_dir: "},
		"raft in secrets":           {func(c *Config) { c.RaftDir = c.SecretsDir() + "/raft" }, "raft_dir: "},
		"data is secrets":           {func(c *Config) { c.PostgreSQL.DataDir = c.SecretsDir() }, "postgresql.data_dir: "},
		"socket_dir too long":       {func(c *Config) { c.PostgreSQL.SocketDir = "/" + strings.Repeat("s", 92) }, "postgresql.socket_dir: is 93 bytes long"},
		"sentinel.socket too long":  {func(c *Config) { c.Sentinel.Socket = long }, "sentinel.socket: is 108 bytes long"},
		"run as root":               {func(c *Config) { c.PostgreSQL.User = "root" }, "postgresql.user: "},
		"user with space":           {func(c *Config) { c.PostgreSQL.User = "a b" }, "postgresql.user: "},
		"superuser empty":           {func(c *Config) { c.PostgreSQL.Superuser = "" }, "postgresql.superuser: "},
		"superuser reserved":        {func(c *Config) { c.PostgreSQL.Superuser = "pg_boss" }, "postgresql.superuser: "},
		"replication_user quoted":   {func(c *Config) { c.PostgreSQL.ReplicationUser = `a"b` }, "postgresql.replication_user: "},
		"replication as superuser":  {func(c *Config) { c.PostgreSQL.ReplicationUser = "postgres" }, "postgresql.replication_user: "},
		"parameter with hyphen":     {func(c *Config) { c.PostgreSQL.Parameters = map[string]string{"a-b": ""} }, "postgresql.parameters.a-b: "},
		"parameter of two lines":    {func(c *Config) { c.PostgreSQL.Parameters = map[string]string{"a": "1\nfsync=off"} }, "postgresql.parameters.a: "},
		"hba of two lines":          {func(c *Config) { c.PostgreSQL.HBA = []string{"host a\nhost b"} }, "postgresql.hba[0]: "},
		"hba empty":                 {func(c *Config) { c.PostgreSQL.HBA = []string{" "} }, "postgresql.hba[0]: "},
		"unknown level":             {func(c *Config) { c.Log.Level = "trace" }, `log.level: "trace" must be one of debug, info, warn, error`},
		"unknown format":            {func(c *Config) { c.Log.Format = "" }, "log.format: "},
		"api.advertise everywhere":  {func(c *Config) { c.API.Advertise = "[::]:1" }, "api.advertise: "},
		"postgresql.advertise port": {func(c *Config) { c.PostgreSQL.Advertise = "n1:x" }, "postgresql.advertise: "},
	} {
		t.Run(name, func(t *testing.T) {
			c := valid()
			tc.change(&c)
			err := c.Validate()
			if err == nil {
				t.Fatal("accepted")
			}
			if got := strings.Split(err.Error(), "\n"); len(got) != 1 || !strings.HasPrefix(got[0], tc.want) {
				t.Errorf("got  %q\nwant one that starts with %q", got, tc.want)
			}
		})
	}
}

// advertiseRest sets the addresses that would otherwise follow from a wrong advertise.
func (c *Config) advertiseRest() {
	c.API.Advertise, c.PostgreSQL.Advertise = "n1:8008", "n1:5432"
}

func TestValidateJoinsEverything(t *testing.T) {
	c := Default()
	c.StateDir = ""
	c.Log.Level = "loud"
	err := c.Validate()
	if _, ok := errors.AsType[problem](err); !ok {
		t.Fatalf("%T holds no problem", err)
	}
	for _, path := range []string{"node.id", "node.name", "advertise", "state_dir", "log.level"} {
		if !strings.Contains("\n"+err.Error(), "\n"+path+": ") {
			t.Errorf("%s is not named in:\n%v", path, err)
		}
	}
}

func TestClosest(t *testing.T) {
	keys := []string{"listen", "advertise", "data_dir", "id"}
	for key, want := range map[string]string{
		"lisen": "listen", "lsiten": "listen", "LISTEN": "listen", "advertize": "advertise", "data-dir": "data_dir", "datadir": "data_dir",
		"ttl": "", "x": "", "": "", "zone": "", "di": "id",
	} {
		if got := closest(key, keys); got != want {
			t.Errorf("closest(%q) = %q, want %q", key, got, want)
		}
	}
}
