package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/transport"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// healthy is a node without fault.
func healthy() Facts {
	cfg := config.Default()
	cfg.Node.Name = "n1"
	cfg = cfg.Complete()
	disk := func(key, path string, dev uint64) Disk {
		return Disk{Key: key, Path: path, Device: dev, FS: "ext4", Free: 500 * gib, Total: 1000 * gib, Inodes: 1e6, Syncs: 50, Median: 200 * time.Microsecond, Worst: 2 * time.Millisecond}
	}
	return Facts{
		Now: now, Config: cfg, ConfigFile: "/etc/matriarch/matriarch.yml", Configured: true, Member: true, AgentPID: 7, SentinelUp: true, User: "postgres",
		PostgreSQL:  PostgreSQL{Dir: "/usr/lib/postgresql/15/bin", Versions: map[string]string{"postgres": "15.18", "pg_rewind": "15.18"}, Data: "15", Preload: "citus,pg_stat_statements"},
		Citus:       Citus{Library: "/usr/lib/postgresql/15/lib/citus.so", Control: "/c", Version: "13.2-1"},
		Clock:       Clock{Source: "tsc", Available: []string{"tsc", "hpet"}, Synced: true, Drift: 3, Peers: []PeerClock{{"n2", 20 * time.Millisecond, time.Millisecond}}},
		Disks:       []Disk{disk("state_dir", "/var/lib/matriarch", 1), disk("raft_dir", "/raft", 2), disk("postgresql.data_dir", "/data", 3)},
		Ports:       []Port{{Key: "listen", Addr: ":7400", InUse: true}, {Key: "postgresql.listen", Addr: ":5432", InUse: true}},
		Reach:       []Reach{{Node: "n2", What: "the peer port", Addr: "10.0.0.2:7400", Took: time.Millisecond}},
		Kernel:      map[string]string{"vm/overcommit_memory": "2", "vm/swappiness": "1", "vm/zone_reclaim_mode": "0", "vm/nr_hugepages": "9000", "transparent_hugepage": "always [madvise] never"},
		MemoryBytes: 64 * gib,
		Limits:      map[string]Limit{"Max open files": {65536, 65536}, "Max locked memory": {-1, -1}, "Max processes": {-1, -1}},
		Names:       []Name{{Name: "n1", Own: true, Took: time.Millisecond, Addrs: []string{"10.0.0.1"}}},
		Watchdog:    Watchdog{Exists: true, Identity: "Software Watchdog"},
		Rights:      []Right{{Path: "/s/superuser", Mode: 0o600, Limit: 0o600, Want: -1}, {Path: "/data", Mode: 0o700, Limit: 0o750, UID: 26, Want: 26}},
		Certs:       []Cert{{File: "node.crt", NotAfter: now.AddDate(1, 0, 0), Use: CertNode}},
		Units:       map[string]string{"matriarch": "enabled", "postgresql": "disabled"},
	}
}

func TestHealthyHostIsOK(t *testing.T) {
	for _, f := range Examine(healthy()) {
		if f.Level != OK {
			t.Errorf("%+v", f)
		}
	}
}

// faults are what each check must see.
var faults = []struct {
	check string
	level Level
	says  string
	spoil func(*Facts)
}{
	{"configuration", Fail, "line 3: unknown key", func(f *Facts) { f.ConfigErr = "line 3: unknown key" }},
	{"configuration", Fail, "belongs to no cluster", func(f *Facts) { f.Member = false }},
	{"configuration", OK, "not written yet", func(f *Facts) { f.Configured, f.Member = false, false }},
	{"postgresql", Fail, "no PostgreSQL", func(f *Facts) { f.PostgreSQL.Err = "no PostgreSQL" }},
	{"postgresql", Fail, `pg_rewind is of version "14.2"`, func(f *Facts) { f.PostgreSQL.Versions["pg_rewind"] = "14.2" }},
	{"postgresql", Fail, "data directory is of PostgreSQL 14", func(f *Facts) { f.PostgreSQL.Data = "14" }},
	{"citus", Fail, "citus.so is not among", func(f *Facts) { f.Citus = Citus{} }},
	{"citus", Fail, "citus.control is not", func(f *Facts) { f.Citus.Control = "" }},
	{"citus", Warn, "stand-in", func(f *Facts) { f.Citus.StandIn = true }},
	{"citus", Fail, "citus must be first", func(f *Facts) { f.PostgreSQL.Preload = "pg_stat_statements, citus" }},
	{"citus", OK, "enabled is false", func(f *Facts) { f.Citus, f.Config.Citus.Enabled = Citus{}, false }},
	{"units", Warn, "postgresql is enabled", func(f *Facts) { f.Units["postgresql"] = "enabled" }},
	{"units", Warn, "stays down", func(f *Facts) { f.Units["matriarch"] = "disabled" }},
	{"units", OK, "no systemd", func(f *Facts) { f.Units = nil }},
	{"clock", Warn, "not synchronised", func(f *Facts) { f.Clock.Synced = false }},
	{"clock", Warn, "jumped by -2s", func(f *Facts) { f.Clock.Jump = -2 * time.Second }},
	{"clock", Fail, "-900 ppm", func(f *Facts) { f.Clock.Drift = -900 }},
	{"clock", Warn, "clock of n2 is -3s", func(f *Facts) { f.Clock.Peers[0].Offset = -3 * time.Second }},
	{"clock", Fail, "may not join", func(f *Facts) { f.Clock.Peers[0].Offset = time.Minute }},
	{"clock", OK, "synchronised", func(f *Facts) { f.Clock.Peers[0] = PeerClock{"n2", 3 * time.Second, 2500 * time.Millisecond} }},
	{"clocksource", Warn, "hpet is slow", func(f *Facts) { f.Clock.Source = "hpet" }},
	{"clocksource", Warn, "could not be read", func(f *Facts) { f.Clock.Source = "" }},
	{"clocksource", OK, "kvm-clock", func(f *Facts) { f.Clock.Source = "kvm-clock" }},
	{"disk-space", Fail, "100 MB left", func(f *Facts) { f.Disks[2].Free = 100 * mib }},
	{"disk-space", Warn, "left of", func(f *Facts) { f.Disks[2].Free = 50 * gib }},
	{"disk-space", Fail, "read-only", func(f *Facts) { f.Disks[0].ReadOnly = true }},
	{"disk-space", Warn, "inodes", func(f *Facts) { f.Disks[0].Inodes = 5 }},
	{"disk-space", Warn, "nfs", func(f *Facts) { f.Disks[0].FS = "nfs" }},
	{"disk-space", Fail, "permission denied", func(f *Facts) { f.Disks[0].Err = "permission denied" }},
	{"disk-fsync", Fail, "stops every primary", func(f *Facts) { f.Disks[1].Worst = 4 * time.Second }},
	{"disk-fsync", Warn, "every commit waits", func(f *Facts) { f.Disks[1].Median = 20 * time.Millisecond }},
	{"disk-fsync", Warn, "nothing was timed", func(f *Facts) { f.Disks = nil }},
	{"disk-shared", Warn, "share a disk", func(f *Facts) { f.Disks[1].Device = 3 }},
	{"ports", Fail, "in use by another", func(f *Facts) { f.AgentPID = 0 }},
	{"ports", Warn, "nobody listens", func(f *Facts) { f.Ports[0].InUse = false }},
	{"ports", Fail, "cannot be listened on", func(f *Facts) { f.Ports[0].Err = "no such address" }},
	{"reach", Fail, "refused", func(f *Facts) { f.Reach[0].Err = "connection refused" }},
	{"reach", Warn, "took 300ms", func(f *Facts) { f.Reach[0].Took = 300 * time.Millisecond }},
	{"reach", OK, "no other node", func(f *Facts) { f.Reach = nil }},
	{"kernel", Warn, "overcommit_memory is 0", func(f *Facts) { f.Kernel["vm/overcommit_memory"] = "0" }},
	{"kernel", Warn, "swappiness is 60", func(f *Facts) { f.Kernel["vm/swappiness"] = "60" }},
	{"kernel", Warn, "zone_reclaim", func(f *Facts) { f.Kernel["vm/zone_reclaim_mode"] = "1" }},
	{"kernel", Warn, "transparent", func(f *Facts) { f.Kernel["transparent_hugepage"] = "[always] madvise never" }},
	{"kernel", Warn, "no huge pages", func(f *Facts) { f.Kernel["vm/nr_hugepages"] = "0" }},
	{"kernel", Warn, "could not be read", func(f *Facts) { f.Kernel = nil }},
	{"limits", Warn, "Max open files of the running node", func(f *Facts) { f.Limits["Max open files"] = Limit{1024, 524288} }},
	{"limits", OK, "of this shell", func(f *Facts) { f.AgentPID, f.Limits["Max open files"] = 0, Limit{1024, 524288} }},
	{"limits", Warn, "Max locked memory", func(f *Facts) { f.UID, f.Limits["Max locked memory"] = 26, Limit{65536, 65536} }},
	{"names", Warn, "own name", func(f *Facts) { f.Names[0].Err = "no such host" }},
	{"names", Fail, "n9 is not found", func(f *Facts) { f.Names = append(f.Names, Name{Name: "n9", Err: "no such host"}) }},
	{"names", Warn, "took 200ms", func(f *Facts) { f.Names[0].Took = 200 * time.Millisecond }},
	{"names", Fail, "took 2s", func(f *Facts) { f.Names[0].Took = 2 * time.Second }},
	{"watchdog", OK, "could be used", func(*Facts) {}},
	{"watchdog", Warn, "there is no /dev/watchdog", func(f *Facts) { f.Config.Sentinel.Watchdog, f.Watchdog = "automatic", Watchdog{} }},
	{"watchdog", Fail, "there is no /dev/watchdog", func(f *Facts) { f.Config.Sentinel.Watchdog, f.Watchdog = "required", Watchdog{} }},
	{"watchdog", Fail, "nowayout", func(f *Facts) { f.Config.Sentinel.Watchdog, f.Watchdog.NoWayOut = "required", true }},
	{"rights", Fail, "others may read it", func(f *Facts) { f.Rights[0].Mode = 0o644 }},
	{"rights", Fail, "belongs to user 0, not 26", func(f *Facts) { f.Rights[1].UID = 0 }},
	{"rights", Fail, "no such file", func(f *Facts) { f.Rights[0].Err = "no such file" }},
	{"rights", Fail, "user postgres", func(f *Facts) { f.UserErr = "unknown user" }},
	{"rights", Warn, "not root", func(f *Facts) { f.UID = 26 }},
	{"certificates", Fail, "has expired", func(f *Facts) { f.Certs[0].NotAfter = now.Add(-time.Hour) }},
	{"certificates", Fail, "another CA", func(f *Facts) { f.Strangers = []string{"n2"} }},
	{"certificates", Warn, "expires on 2026-01-02", func(f *Facts) { f.Certs[0].NotAfter, f.Certs[0].Life = now.Add(5*time.Hour), 24*time.Hour }},
	{"certificates", OK, "none expires soon", func(f *Facts) { f.Certs[0].NotAfter, f.Certs[0].Life = now.Add(7*time.Hour), 24*time.Hour }},
	{"certificates", Warn, "expires on 2026-01-09", func(f *Facts) { f.Certs[0].NotAfter = now.AddDate(0, 0, 7) }},
	{"certificates", Fail, "no certificate", func(f *Facts) { f.Certs[0].Err = "holds no certificate" }},
	{"certificates", OK, "none yet", func(f *Facts) { f.Certs = nil }},
}

func TestEachFaultIsSeen(t *testing.T) {
	for _, c := range faults {
		t.Run(c.check+" "+c.says, func(t *testing.T) {
			f := healthy()
			c.spoil(&f)
			found := Examine(f)
			if !slices.ContainsFunc(found, func(x Finding) bool {
				return x.Check == c.check && x.Level == c.level && strings.Contains(x.Says, c.says)
			}) {
				t.Errorf("not seen in %+v", found)
			}
			for _, x := range found {
				if (x.Level == OK) != (x.Do == "") {
					t.Errorf("a finding that is not ok says what to do: %+v", x)
				}
			}
			if c.level == Fail && Worst(found) != Fail {
				t.Errorf("worst is %s", Worst(found))
			}
		})
	}
}

// TestEveryCheckCanSayNo: a check without a fault here is not tested.
func TestEveryCheckCanSayNo(t *testing.T) {
	for _, c := range Checks() {
		if c.About == "" {
			t.Errorf("%s: about nothing", c.Name)
		}
		for _, x := range Examine(Facts{}) {
			if x.Check == "" || x.Says == "" {
				t.Errorf("%+v", x)
			}
		}
		bad := false
		for _, f := range faults {
			bad = bad || (f.check == c.Name && f.level != OK)
		}
		if !bad {
			t.Errorf("%s has no fault among the tests", c.Name)
		}
	}
}

// fake is a machine of files and answers.
type fake struct {
	files   map[string]string
	outputs map[string]string
	hosts   map[string][]string
	used    []string // addresses in use
	open    []string // addresses that answer
}

func (f fake) ReadFile(path string) ([]byte, error) {
	if s, ok := f.files[path]; ok {
		return []byte(s), nil
	}
	return nil, os.ErrNotExist
}

func (f fake) Output(_ context.Context, _, program string, args ...string) (string, error) {
	if s, ok := f.outputs[filepath.Base(program)+" "+strings.Join(args, " ")]; ok {
		return s, nil
	}
	return "", errors.New("exit status 1")
}

func (f fake) Lookup(_ context.Context, name string) ([]string, error) {
	if a, ok := f.hosts[name]; ok {
		return a, nil
	}
	return nil, errors.New("no such host")
}

func (f fake) Dial(_ context.Context, _, addr string) error {
	if slices.Contains(f.open, addr) {
		return nil
	}
	return syscall.ECONNREFUSED
}

func (f fake) Listen(addr string) error {
	if slices.Contains(f.used, addr) {
		return syscall.EADDRINUSE
	}
	return nil
}

func TestGather(t *testing.T) {
	cfg := config.Default()
	cfg.StateDir = t.TempDir()
	cfg.Listen, cfg.Advertise, cfg.Peers = "10.0.0.1:7400", "n1.example:7400", []string{"n2.example:7400"}
	cfg = cfg.Complete()
	ca, err := transport.NewCA("0aaaaaaa-0000-4000-8000-000000000001", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := identity.Dir(cfg.StateDir)
	if err := errors.Join(dir.SaveMaterial(identity.Material{CA: ca.CertPEM()}), dir.SaveSecrets(map[string]string{"superuser": "x"}), dir.Save(identity.Identity{ClusterID: "c", NodeID: "n", Name: "n1"})); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir.SecretFile("superuser"), 0o640); err != nil {
		t.Fatal(err)
	}
	m := fake{
		files: map[string]string{
			cfg.PostgreSQL.DataDir + "/PG_VERSION": "15\n", "/lib/citus.so": "", "/share/extension/citus.control": "comment = 'x'\ndefault_version = '13.2-1'\n",
			"/proc/sys/vm/swappiness": "60\n", "/proc/meminfo": "MemTotal:       1048576 kB\n",
			"/proc/9/limits": "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \nMax locked memory         unlimited            unlimited            bytes     \n",
			"/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
		},
		outputs: map[string]string{
			"postgres --version": "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "pg_config --pkglibdir": "/lib", "pg_config --sharedir": "/share",
			"postgres -D " + cfg.PostgreSQL.DataDir + " -C shared_preload_libraries": "citus", "systemctl is-enabled matriarch": "enabled",
		},
		hosts: map[string][]string{"n1.example": {"10.0.0.1"}}, used: []string{"10.0.0.1:7400"}, open: []string{"10.0.0.2:7400", cfg.Sentinel.Socket},
	}
	f := Gather(t.Context(), m, Request{
		Config: cfg, AgentPID: 9, Reach: []Reach{{Node: "n2", Addr: "10.0.0.2:7400"}, {Node: "n3", Addr: "10.0.0.3:7400"}},
		Find: func(string) (string, error) { return "/bin", nil },
	})
	if f.PostgreSQL.Versions["postgres"] != "15.18" || f.PostgreSQL.Data != "15" || f.PostgreSQL.Preload != "citus" || f.PostgreSQL.Versions["pg_rewind"] != "exit status 1" {
		t.Errorf("PostgreSQL: %+v", f.PostgreSQL)
	}
	if diff := cmp.Diff(Citus{Library: "/lib/citus.so", Control: "/share/extension/citus.control", Version: "13.2-1"}, f.Citus); diff != "" {
		t.Error(diff)
	}
	if !f.Member || !f.SentinelUp || !f.Ports[0].InUse || f.Ports[1].InUse {
		t.Errorf("member %v, sentinel %v, ports %+v", f.Member, f.SentinelUp, f.Ports)
	}
	if f.Reach[0].Err != "" || f.Reach[1].Err == "" {
		t.Errorf("reach %+v", f.Reach)
	}
	if f.Kernel["vm/swappiness"] != "60" || f.MemoryBytes != 1<<30 || f.Limits["Max open files"] != (Limit{1024, 524288}) || f.Limits["Max locked memory"] != (Limit{-1, -1}) {
		t.Errorf("kernel %v, memory %d, limits %v", f.Kernel, f.MemoryBytes, f.Limits)
	}
	if f.Units["matriarch"] != "enabled" || f.Units["postgresql"] != "not-found" || f.Clock.Source != "tsc" {
		t.Errorf("units %v, clock %+v", f.Units, f.Clock)
	}
	seen := map[string]Name{}
	for _, n := range f.Names {
		seen[n.Name] = n
	}
	if !seen["n1.example"].Own || seen["n1.example"].Err != "" || seen["n2.example"].Err == "" {
		t.Errorf("names %+v", f.Names)
	}
	for _, d := range f.Disks {
		if d.Err != "" || d.Syncs == 0 || d.Total == 0 || d.FS == "" {
			t.Errorf("disk %+v", d)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(cfg.StateDir, ".matriarch-doctor-*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
	if len(f.Certs) != 2 || f.Certs[1].Err != "" || f.Certs[1].NotAfter.Before(f.Now) {
		t.Errorf("certificates %+v", f.Certs)
	}
	if !slices.ContainsFunc(Examine(f), func(x Finding) bool {
		return x.Check == "rights" && strings.Contains(x.Says, "superuser has mode 0640")
	}) {
		t.Errorf("rights %+v", f.Rights)
	}
}

// TestRemediesOfCertificates: each kind names the verb that helps.
func TestRemediesOfCertificates(t *testing.T) {
	for use, verb := range map[CertUse]string{CertNode: "certificates renew", CertPostgres: "certificates renew", CertCA: "ca rotate", CertBrought: "replace the files"} {
		f := healthy()
		f.Certs = []Cert{{File: "x.crt", Use: use, NotAfter: now.Add(-time.Hour)}}
		if !slices.ContainsFunc(Examine(f), func(x Finding) bool { return x.Check == "certificates" && strings.Contains(x.Do, verb) }) {
			t.Errorf("%s: nothing says %q", use, verb)
		}
	}
}

func TestCompareClocks(t *testing.T) {
	jump, ppm := compare(stamp{wall: 100, steady: 10, raw: 10}, stamp{wall: time.Hour + 100, steady: time.Second + 10, raw: time.Second + 10})
	if jump != time.Hour-time.Second || ppm != 0 {
		t.Errorf("%s, %f", jump, ppm)
	}
	if _, ppm := compare(stamp{}, stamp{steady: time.Second + time.Millisecond, raw: time.Second}); ppm < 999 || ppm > 1001 {
		t.Errorf("%f ppm", ppm)
	}
}
