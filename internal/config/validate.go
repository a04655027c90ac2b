package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// maxSocketPath is what the kernel takes for the path of a Unix socket, in bytes, without the closing NUL.
const maxSocketPath = 107

// longestSocketName is PostgreSQL's socket file with the longest port.
const longestSocketName = "/.s.PGSQL.65535"

var (
	nodeName  = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)
	zoneName  = regexp.MustCompile(`^[A-Za-z0-9._-]{0,63}$`)
	roleName  = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)
	osUser    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	parameter = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$`)
	tagName   = regexp.MustCompile(`^[A-Za-z0-9._/-]{1,63}$`)
	dnsName   = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?$`)
	digits    = regexp.MustCompile(`^[0-9.]+$`)
)

// problem is one thing wrong with the configuration: the YAML path and, in one sentence, what and the remedy.
type problem struct {
	path string
	text string
}

// Error starts with the YAML path.
func (p problem) Error() string { return p.path + ": " + p.text }

type problems []problem

func (ps *problems) add(path, format string, args ...any) {
	*ps = append(*ps, problem{path, fmt.Sprintf(format, args...)})
}

// Validate checks the completed configuration and joins everything that is wrong, each error with its YAML path and the remedy.
func (c Config) Validate() error {
	errs := make([]error, 0)
	for _, p := range c.Complete().problems() {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

// problems expects a completed configuration.
func (c Config) problems() problems {
	var ps problems
	ps.node(c.Node)
	ps.addresses(c)
	ps.paths(c)
	ps.postgresql(c.PostgreSQL)
	ps.proxy(c.Proxy)
	ps.certificates(c.Certificates)
	ps.api(c.API)
	ps.hooks(c)
	walk(reflect.ValueOf(c), "", func(f field, v reflect.Value) {
		if len(f.values) > 0 && !slices.Contains(f.values, v.String()) {
			ps.add(f.path, "%q must be one of %s", v.String(), strings.Join(f.values, ", "))
		}
	})
	return ps
}

func (ps *problems) api(a API) {
	credential := a.ClientCAFile != "" || a.TokenFile != "" || a.Username != ""
	for _, p := range []struct {
		wrong      bool
		path, text string
	}{
		{a.RateLimit < 0, "rate_limit", "must be 0 (no limit) or greater"},
		{a.Writes == "on" && a.TLS != "on", "writes", "needs api.tls: on, as credentials could be read on the way"},
		{(a.Writes == "on" || a.Reads == "closed") && !credential, "writes", "and closed reads need a credential: set client_ca_file, token_file, or username and password_file"},
		{a.Reads == "closed" && a.TLS != "on" && (a.TokenFile != "" || a.Username != ""), "reads", "closed with a token or password needs api.tls: on, as they could be read on the way"},
		{(a.CertFile == "") != (a.KeyFile == ""), "cert_file", "goes with key_file: set both or none"},
		{(a.Username == "") != (a.PasswordFile == ""), "username", "goes with password_file: set both or none"},
		{a.ClientCAFile != "" && a.TLS != "on", "client_ca_file", "needs api.tls: on"},
	} {
		if p.wrong {
			ps.add("api."+p.path, "%s", p.text)
		}
	}
	for i, s := range a.Allow {
		if _, err := netip.ParsePrefix(s); err != nil && net.ParseIP(s) == nil {
			ps.add(fmt.Sprintf("api.allow[%d]", i), "%q is no address or network: write 10.0.0.7 or 10.0.0.0/8", s)
		}
	}
	for path, file := range map[string]string{"cert_file": a.CertFile, "key_file": a.KeyFile, "client_ca_file": a.ClientCAFile, "token_file": a.TokenFile, "password_file": a.PasswordFile} {
		if file != "" && !filepath.IsAbs(file) {
			ps.add("api."+path, "%q must be an absolute path", file)
		}
	}
}

// shortestCertificate leaves a node time to renew, and the others' clocks to differ.
const shortestCertificate = 10 * time.Second

func (ps *problems) certificates(c Certificates) {
	if c.Lifetime < shortestCertificate {
		ps.add("certificates.lifetime", "%s must be %s or longer; 8760h is a year", c.Lifetime, shortestCertificate)
	}
	for i, n := range c.Names {
		if !validHost(n) {
			ps.add(fmt.Sprintf("certificates.names[%d]", i), "%q is neither an IP address nor a host name", n)
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		ps.add("certificates.cert_file", "goes with key_file: set both or none")
	}
	for _, f := range []struct{ path, value string }{{"cert_file", c.CertFile}, {"key_file", c.KeyFile}, {"ca_file", c.CAFile}} {
		if f.value != "" && !filepath.IsAbs(f.value) {
			ps.add("certificates."+f.path, "%q must be an absolute path", f.value)
		}
	}
}

func (ps *problems) node(n Node) {
	if id, err := uuid.Parse(n.ID); n.ID == "" {
		ps.add("node.id", "is missing: let 'matriarch bootstrap' or 'matriarch join' write this file, they draw it")
	} else if err != nil || id.String() != n.ID {
		ps.add("node.id", "%q is no UUID in lower case with hyphens: put back what bootstrap or join wrote", n.ID)
	}
	if n.Name == "" {
		ps.add("node.name", "is missing: give the node a name of 1 to 40 letters a-z, digits and hyphens")
	} else if !nodeName.MatchString(n.Name) {
		ps.add("node.name", "%q must be 1 to 40 of a-z, 0-9 and hyphen", n.Name)
	}
	if n.Group < 0 {
		ps.add("node.group", "%d must be 0 (the coordinator) or greater (a worker)", n.Group)
	}
	if !zoneName.MatchString(n.Zone) {
		ps.add("node.zone", "%q must be at most 63 letters, digits, dots, hyphens and underscores", n.Zone)
	}
	if p := n.Tags.FailoverPriority; p < 0 || p > 1000 {
		ps.add("node.tags.failover_priority", "%d must be 0 (never a primary) to 1000", p)
	}
	if p := n.Tags.SyncPriority; p < 0 || p > 1000 {
		ps.add("node.tags.sync_priority", "%d must be 0 to 1000", p)
	}
	ps.userTags(n.Tags)
}

// userTags refuses what looks like a mistyped tag of ours: it would silently do nothing.
func (ps *problems) userTags(t Tags) {
	known := []string{"nofailover", "nosync", "noloadbalance", "clonefrom", "failover_priority", "sync_priority"}
	for _, name := range slices.Sorted(maps.Keys(t.User)) {
		path := "node.tags." + name
		if !tagName.MatchString(name) {
			ps.add(path, "a tag's name must be 1 to 63 letters, digits, dots, slashes, hyphens and underscores")
		} else if near := closest(name, known); near != "" {
			ps.add(path, "did you mean %s? A tag of your own must not look like one of Matriarch's", near)
		}
	}
}

func (ps *problems) addresses(c Config) {
	listens := []struct{ path, value string }{
		{"listen", c.Listen},
		{"api.listen", c.API.Listen},
		{"postgresql.listen", c.PostgreSQL.Listen},
		{"proxy.coordinator.listen", c.Proxy.Coordinator.Listen},
		{"proxy.worker.listen", c.Proxy.Worker.Listen},
		{"proxy.standby.listen", c.Proxy.Standby.Listen},
	}
	for i, l := range listens {
		if off := l.value == "" && strings.HasPrefix(l.path, "proxy."); off || !ps.address(l.path, l.value, true) {
			continue
		}
		for _, other := range listens[:i] {
			if overlap(l.value, other.value) {
				ps.add(l.path, "%s is taken by %s already: choose another port", l.value, other.path)
			}
		}
	}
	if c.Advertise == "" {
		ps.add("advertise", "is missing, and %q is no address others can dial: set host:port of this node", c.Listen)
	} else {
		ps.address("advertise", c.Advertise, false)
	}
	for _, a := range []struct{ path, value string }{
		{"api.advertise", c.API.Advertise}, {"postgresql.advertise", c.PostgreSQL.Advertise},
	} {
		// Empty only when the addresses that it follows from are wrong, which has been said.
		if a.value != "" {
			ps.address(a.path, a.value, false)
		}
	}
	for i, p := range c.Peers {
		ps.address(fmt.Sprintf("peers[%d]", i), p, false)
	}
}

// address checks host:port. A listen address may stand for all of the host's addresses, an advertised one may not.
func (ps *problems) address(path, value string, listen bool) bool {
	before := len(*ps)
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		ps.add(path, "%q must be host:port, for instance 10.0.0.1:7400 or [2001:db8::1]:7400", value)
		return false
	}
	if !validPort(port) {
		ps.add(path, "port %q in %q must be a number from 1 to 65535", port, value)
	}
	switch {
	case !listen && everyAddress(value):
		ps.add(path, "%q is no address others can dial: set the host's own address or name", value)
	case host != "" && !validHost(host):
		ps.add(path, "%q in %q is neither an IP address nor a host name", host, value)
	}
	return len(*ps) == before
}

func validPort(port string) bool {
	n, err := strconv.Atoi(port)
	return err == nil && n >= 1 && n <= 65535
}

func validHost(host string) bool {
	if bare, _, _ := strings.Cut(host, "%"); net.ParseIP(bare) != nil {
		return true
	}
	// Digits and dots that are no IP address are a typo, not a name.
	return len(host) <= 253 && dnsName.MatchString(host) && !digits.MatchString(host)
}

// overlap reports whether two valid listen addresses cannot both be listened on.
func overlap(a, b string) bool {
	hostA, portA, _ := net.SplitHostPort(a)
	hostB, portB, _ := net.SplitHostPort(b)
	return portA == portB && (hostA == hostB || everyAddress(a) || everyAddress(b))
}

func (ps *problems) paths(c Config) {
	// Empty only when state_dir, which they follow from, is wrong; that is said once.
	derived := !goodPath(c.StateDir)
	for _, p := range []struct {
		path, value string
		optional    bool
	}{
		{"state_dir", c.StateDir, false},
		{"raft_dir", c.RaftDir, derived},
		{"postgresql.bin_dir", c.PostgreSQL.BinDir, true},
		{"postgresql.data_dir", c.PostgreSQL.DataDir, derived},
		{"postgresql.socket_dir", c.PostgreSQL.SocketDir, derived},
		{"postgresql.log_file", c.PostgreSQL.LogFile, derived},
		{"sentinel.socket", c.Sentinel.Socket, derived},
	} {
		if p.value == "" && p.optional {
			continue
		}
		if !goodPath(p.value) {
			ps.add(p.path, "%q must be an absolute path in its shortest form, for instance /var/lib/matriarch", p.value)
		}
	}
	if n := len(c.PostgreSQL.SocketDir); n > maxSocketPath-len(longestSocketName) {
		ps.add("postgresql.socket_dir", "is %d bytes long, a Unix socket allows %d: set a shorter one", n, maxSocketPath-len(longestSocketName))
	}
	if n := len(c.Sentinel.Socket); n > maxSocketPath {
		ps.add("sentinel.socket", "is %d bytes long, a Unix socket allows %d: set a shorter one", n, maxSocketPath)
	}
	ps.nesting(c)
}

func goodPath(path string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && path != "/" && !strings.ContainsAny(path, "\n\x00")
}

// nesting keeps the directories apart: a clone renames data_dir as a whole, and removing one thing must never remove another.
func (ps *problems) nesting(c Config) {
	data, secrets := c.PostgreSQL.DataDir, c.SecretsDir()
	for _, other := range []struct{ path, value string }{
		{"state_dir", c.StateDir},
		{"raft_dir", c.RaftDir},
		{"postgresql.socket_dir", c.PostgreSQL.SocketDir},
		{"postgresql.log_file", c.PostgreSQL.LogFile},
		{"sentinel.socket", c.Sentinel.Socket},
	} {
		if inside(other.value, data) {
			ps.add(other.path, "%s is inside postgresql.data_dir (%s), which a clone replaces: move it out", other.value, data)
		}
	}
	for _, own := range []struct{ path, value string }{
		{"postgresql.data_dir", data},
		{"postgresql.socket_dir", c.PostgreSQL.SocketDir},
		{"postgresql.log_file", c.PostgreSQL.LogFile},
		{"sentinel.socket", c.Sentinel.Socket},
	} {
		if inside(own.value, c.RaftDir) {
			ps.add(own.path, "%s is inside raft_dir (%s): move it out", own.value, c.RaftDir)
		}
	}
	for _, own := range []struct{ path, value string }{{"raft_dir", c.RaftDir}, {"postgresql.data_dir", data}, {"postgresql.socket_dir", c.PostgreSQL.SocketDir}} {
		if inside(own.value, secrets) {
			ps.add(own.path, "%s is inside %s, the place of the secrets: move it out", own.value, secrets)
		}
	}
	if c.RaftDir != "" && inside(c.StateDir, c.RaftDir) {
		ps.add("raft_dir", "%s must be a directory of its own: state_dir is the same or inside it", c.RaftDir)
	}
}

// inside reports whether path is dir or below it.
func inside(path, dir string) bool {
	return path != "" && dir != "" && (path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/"))
}

// Limits of the proxy's times: shorter than the shortest no server answers, longer than the longest no client waits.
const (
	minProxyTime = 100 * time.Millisecond
	maxProxyTime = 10 * time.Minute
)

func (ps *problems) proxy(p Proxy) {
	if p.MaxConnections < 1 || p.MaxConnections > 100_000 {
		ps.add("proxy.max_connections", "%d must be 1 to 100000; to close a listener, leave its listen empty", p.MaxConnections)
	}
	if p.MaxPerClient < 0 {
		ps.add("proxy.max_per_client", "%d must be 0 (no limit) or greater", p.MaxPerClient)
	}
	if p.Standby.MaxLagBytes < 0 {
		ps.add("proxy.standby.max_lag_bytes", "%d must be 0 (no limit) or greater", p.Standby.MaxLagBytes)
	}
	for _, d := range []struct {
		path  string
		value time.Duration
	}{{"proxy.wait_limit", p.WaitLimit}, {"proxy.connect_timeout", p.ConnectTimeout}} {
		if d.value < minProxyTime || d.value > maxProxyTime {
			ps.add(d.path, "%s must be %s to %s", d.value, minProxyTime, maxProxyTime)
		}
	}
}

const (
	minHookTime = 100 * time.Millisecond
	maxHookTime = 45 * time.Second // a promotion is given up after a minute
	maxHandover = time.Minute      // TimeoutStopSec of the unit allows for no more
)

func (ps *problems) hooks(c Config) {
	for _, h := range []struct {
		path    string
		command []string
	}{{"hooks.pre_promote", c.Hooks.PrePromote}, {"hooks.fence_command", c.Hooks.FenceCommand}, {"hooks.on_role_change", c.Hooks.OnRoleChange}} {
		if len(h.command) > 0 && !goodPath(h.command[0]) {
			ps.add(h.path, "%q must begin with the absolute path of a program", strings.Join(h.command, " "))
		}
	}
	if d := c.Hooks.Timeout; d < minHookTime || d > maxHookTime {
		ps.add("hooks.timeout", "%s must be %s to %s", d, minHookTime, maxHookTime)
	}
	if !goodPath(c.Sentinel.WatchdogDevice) {
		ps.add("sentinel.watchdog_device", "%q must be an absolute path, for instance /dev/watchdog", c.Sentinel.WatchdogDevice)
	}
	if d := c.Stop.HandoverTimeout; d < 0 || d > maxHandover {
		ps.add("stop.handover_timeout", "%s must be 0s (off) to %s", d, maxHandover)
	}
	if c.PostgreSQL.SetAsideLimit < 0 {
		ps.add("postgresql.set_aside_limit", "%d must be 0 (no limit) or greater", c.PostgreSQL.SetAsideLimit)
	}
}
