package doctor

import (
	"context"
	"errors"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"matriarch/internal/config"
	"matriarch/internal/identity"
)

// Request is what the caller knows already.
type Request struct {
	Config     config.Config // complete
	ConfigFile string
	ConfigErr  string
	Configured bool
	AgentPID   int         // 0: none answered
	Reach      []Reach     // addresses to try; Took and Err are filled in
	PeerClocks []PeerClock // as the nodes that answered have them
	Strangers  []string    // nodes that show certificates of another CA
	// Find looks for PostgreSQL's programs; it is pgmanager.Find, which this package does not import.
	Find func(binDir string) (dir string, err error)
}

const (
	dialLimit   = 2 * time.Second
	lookupLimit = 3 * time.Second
)

// Gather looks at the host. It takes a second or two, less than ten when much is wrong.
func Gather(ctx context.Context, m Machine, q Request) Facts {
	f := Facts{
		Now: time.Now(), Config: q.Config, ConfigFile: q.ConfigFile, ConfigErr: q.ConfigErr, Configured: q.Configured, AgentPID: q.AgentPID, UID: os.Getuid(),
		Member: identity.Dir(q.Config.StateDir).Exists(), Reach: q.Reach,
	}
	f.Clock.Peers, f.Strangers = q.PeerClocks, q.Strangers
	f.SentinelUp = m.Dial(ctx, "unix", q.Config.Sentinel.Socket) == nil
	var wg sync.WaitGroup
	started := stamps()
	wg.Go(func() { network(ctx, m, &f) })
	f.User, f.UserErr = serverUser(q.Config)
	programs(ctx, m, q, &f)
	f.Disks = disks(q.Config)
	f.Ports = listens(m, q.Config)
	memory(m, &f)
	f.Watchdog = watchdogOf(m, q.Config.Sentinel.WatchdogDevice)
	f.Rights, f.Certs = files(q.Config, f.Member, f.User)
	f.Units = unitStates(ctx, m)
	wg.Wait()
	timekeeping(ctx, m, started, &f.Clock)
	return f
}

func serverUser(cfg config.Config) (name, problem string) {
	name = cfg.PostgreSQL.User
	if name == "" && os.Getuid() == 0 {
		name = "postgres"
	}
	var err error
	if name == "" {
		var u *user.User
		if u, err = user.Current(); err == nil {
			return u.Username, ""
		}
	} else {
		_, err = user.Lookup(name)
	}
	if err != nil {
		return name, err.Error()
	}
	return name, ""
}

// programs looks at the server and the extension.
func programs(ctx context.Context, m Machine, q Request, f *Facts) {
	dir, err := q.Find(q.Config.PostgreSQL.BinDir)
	if err != nil {
		f.PostgreSQL.Err = err.Error()
		return
	}
	f.PostgreSQL.Dir, f.PostgreSQL.Versions = dir, map[string]string{}
	for _, name := range []string{"postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata"} {
		out, err := m.Output(ctx, f.User, filepath.Join(dir, name), "--version")
		f.PostgreSQL.Versions[name] = versionIn(out)
		if err != nil {
			f.PostgreSQL.Versions[name] = err.Error()
		}
	}
	if b, err := m.ReadFile(filepath.Join(q.Config.PostgreSQL.DataDir, "PG_VERSION")); err == nil {
		f.PostgreSQL.Data = strings.TrimSpace(string(b))
		f.PostgreSQL.Preload, _ = m.Output(ctx, f.User, filepath.Join(dir, "postgres"), "-D", q.Config.PostgreSQL.DataDir, "-C", "shared_preload_libraries")
	}
	f.Citus = citusFiles(ctx, m, dir, f.PostgreSQL.Versions["postgres"])
}

// versionIn is 15.18 of "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)".
func versionIn(out string) string {
	_, rest, ok := strings.Cut(out, "(PostgreSQL) ")
	if !ok {
		return out
	}
	v, _, _ := strings.Cut(rest, " ")
	return v
}

// citusFiles asks pg_config where things are, or looks where the distributions put them.
func citusFiles(ctx context.Context, m Machine, bin, version string) Citus {
	major, _, _ := strings.Cut(version, ".")
	lib, err1 := m.Output(ctx, "", filepath.Join(bin, "pg_config"), "--pkglibdir")
	share, err2 := m.Output(ctx, "", filepath.Join(bin, "pg_config"), "--sharedir")
	libs, shares := []string{lib}, []string{share}
	if errors.Join(err1, err2) != nil {
		root := filepath.Dir(bin)
		libs = []string{filepath.Join(root, "lib"), filepath.Join(root, "lib", "postgresql")}
		shares = []string{filepath.Join("/usr/share/postgresql", major), filepath.Join(root, "share"), filepath.Join(root, "share", "postgresql")}
	}
	var c Citus
	for _, d := range libs {
		if p := filepath.Join(d, "citus.so"); c.Library == "" {
			if _, err := m.ReadFile(p); err == nil {
				c.Library = p
			}
		}
	}
	for _, d := range shares {
		p := filepath.Join(d, "extension", "citus.control")
		b, err := m.ReadFile(p)
		if err != nil || c.Control != "" {
			continue
		}
		c.Control = p
		lower := strings.ToLower(string(b))
		c.StandIn = strings.Contains(lower, "stand-in") || strings.Contains(lower, "standin")
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, "="); ok && strings.TrimSpace(k) == "default_version" {
				c.Version = strings.Trim(strings.TrimSpace(v), "'")
			}
		}
	}
	return c
}

// listens tries every address that the node would listen on.
func listens(m Machine, cfg config.Config) []Port {
	out := []Port{{Key: "listen", Addr: cfg.Listen}, {Key: "api.listen", Addr: cfg.API.Listen}, {Key: "postgresql.listen", Addr: cfg.PostgreSQL.Listen}}
	for _, kind := range []string{"coordinator", "worker", "standby"} {
		if addr, ok := cfg.Proxy.Listeners()[kind]; ok {
			out = append(out, Port{Key: "proxy." + kind + ".listen", Addr: addr})
		}
	}
	for i := range out {
		switch err := m.Listen(out[i].Addr); {
		case errors.Is(err, syscall.EADDRINUSE):
			out[i].InUse = true
		case err != nil:
			out[i].Err = err.Error()
		}
	}
	return out
}

// network dials and resolves, all at once: nobody waits for the slowest twice.
func network(ctx context.Context, m Machine, f *Facts) {
	hosts := map[string]bool{}
	add := func(addr string, own bool) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			host = addr
		}
		if host != "" && net.ParseIP(host) == nil {
			hosts[host] = hosts[host] || own
		}
	}
	if h, err := os.Hostname(); err == nil {
		add(h, true)
	}
	add(f.Config.Advertise, true)
	for _, x := range f.Reach {
		add(x.Addr, false)
	}
	for _, p := range f.Config.Peers {
		add(p, false)
	}
	found := make(chan Name, len(hosts))
	for h, own := range hosts {
		go func() {
			ctx, cancel := context.WithTimeout(ctx, lookupLimit)
			defer cancel()
			n := Name{Name: h, Own: own}
			began := time.Now()
			var err error
			n.Addrs, err = m.Lookup(ctx, h)
			n.Took = time.Since(began)
			if err != nil {
				n.Err = err.Error()
			}
			found <- n
		}()
	}
	var wg sync.WaitGroup
	for i := range f.Reach {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, dialLimit)
			defer cancel()
			began := time.Now()
			if err := m.Dial(ctx, "tcp", f.Reach[i].Addr); err != nil {
				f.Reach[i].Err = err.Error()
			}
			f.Reach[i].Took = time.Since(began)
		})
	}
	wg.Wait()
	for range hosts {
		f.Names = append(f.Names, <-found)
	}
}

func unitStates(ctx context.Context, m Machine) map[string]string {
	out := map[string]string{}
	for _, u := range []string{"matriarch", "postgresql", "patroni", "pgautofailover", "repmgrd"} {
		state, err := m.Output(ctx, "", "systemctl", "is-enabled", u)
		if state == "" && err != nil {
			if u == "matriarch" {
				return nil // no systemd
			}
			state = "not-found"
		}
		out[u] = state
	}
	return out
}

// files are those whose owner and mode matter, and the certificates.
func files(cfg config.Config, member bool, serverUser string) ([]Right, []Cert) {
	if !member {
		return nil, nil
	}
	dir := identity.Dir(cfg.StateDir)
	var out []Right
	look := func(path string, limit uint32, want int) {
		r := Right{Path: path, Limit: limit, Want: want}
		st, err := os.Stat(path)
		if err != nil {
			r.Err = err.Error()
		} else {
			r.Mode = uint32(st.Mode().Perm())
			if sys, ok := st.Sys().(*syscall.Stat_t); ok {
				r.UID = int(sys.Uid)
			}
		}
		out = append(out, r)
	}
	look(cfg.SecretsDir(), 0o700, -1)
	look(dir.KeyFile(), 0o600, -1)
	secrets, _ := filepath.Glob(filepath.Join(cfg.SecretsDir(), "*"))
	for _, s := range secrets {
		look(s, 0o600, -1)
	}
	if _, err := os.Stat(cfg.PostgreSQL.DataDir); err == nil {
		look(cfg.PostgreSQL.DataDir, 0o750, uidOf(serverUser))
	}
	return out, certificatesOf(cfg)
}

// certificatesOf lists what a node shows or trusts. PostgreSQL's own are there only if they are Matriarch's.
func certificatesOf(cfg config.Config) []Cert {
	dir := identity.Dir(cfg.StateDir)
	out := []Cert{certificate(CertNode, dir.CertFile()), certificate(CertCA, dir.CAFile())}
	server := CertPostgres
	if cfg.Certificates.CertFile != "" {
		server = CertBrought
	}
	for _, c := range []struct {
		name string
		use  CertUse
	}{{"server", server}, {"superuser", CertPostgres}, {"replication", CertPostgres}} {
		file := filepath.Join(cfg.StateDir, "pg", "tls", c.name+".crt")
		if _, err := os.Stat(file); err == nil {
			out = append(out, certificate(c.use, file))
		}
	}
	for _, file := range []string{cfg.Certificates.CertFile, cfg.Certificates.CAFile, cfg.API.CertFile} {
		if file != "" {
			out = append(out, certificate(CertBrought, file))
		}
	}
	return out
}

func uidOf(name string) int {
	u, err := user.Lookup(name)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(u.Uid)
	if err != nil {
		return -1
	}
	return n
}
