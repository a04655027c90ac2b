package doctor

import (
	"maps"
	"slices"
	"strings"
	"time"
)

func configuration(f Facts, r *report) {
	switch {
	case f.ConfigErr != "":
		r.fail("correct the file: 'matriarch config validate' says the same", "%s", f.ConfigErr)
	case !f.Configured:
		r.ok("%s is not written yet: the defaults are examined", f.ConfigFile)
	case !f.Member:
		r.fail("'matriarch join' or 'matriarch bootstrap' makes this host a node and writes the file; move this one away first", "%s is there, but %s belongs to no cluster", f.ConfigFile, f.Config.StateDir)
	default:
		r.ok("%s is valid: node %s, group %d", f.ConfigFile, f.Config.Node.Name, f.Config.Node.Group)
	}
}

func postgresql(f Facts, r *report) {
	p := f.PostgreSQL
	if p.Err != "" {
		r.fail("install PostgreSQL 14 to 18 with its server programs, or name their directory in postgresql.bin_dir", "%s", p.Err)
		return
	}
	server := p.Versions["postgres"]
	for _, name := range slices.Sorted(maps.Keys(p.Versions)) {
		if v := p.Versions[name]; v != server {
			r.fail("install the programs of one version, from one package source", "%s is of version %q, postgres of %q", name, v, server)
		}
	}
	if major, _, _ := strings.Cut(server, "."); p.Data != "" && p.Data != major {
		r.fail("name the directory of version "+p.Data+" in postgresql.bin_dir", "the data directory is of PostgreSQL %s, the programs are of %s", p.Data, server)
	}
	r.quiet("PostgreSQL %s in %s, all programs of that version", server, p.Dir)
}

func citus(f Facts, r *report) {
	c := f.Citus
	if !f.Config.Citus.Enabled {
		r.ok("citus.enabled is false")
		return
	}
	if f.PostgreSQL.Err != "" {
		r.warn("install PostgreSQL first", "not examined: there is no PostgreSQL")
		return
	}
	install := "install the Citus package for the server's major version, or set citus.enabled: false"
	switch {
	case c.Library == "":
		r.fail(install, "citus.so is not among the libraries of the server in %s", f.PostgreSQL.Dir)
	case c.Control == "":
		r.fail(install, "%s is there, citus.control is not", c.Library)
	case c.StandIn:
		r.warn("install the Citus project's package before there is data", "Citus %s is the stand-in for tests, not the real extension", c.Version)
	}
	if first, _, _ := strings.Cut(p1(f.PostgreSQL.Preload), ","); f.PostgreSQL.Data != "" && f.PostgreSQL.Preload != "" && strings.Trim(first, `" `) != "citus" {
		r.fail("take shared_preload_libraries out of postgresql.auto.conf (ALTER SYSTEM RESET): Matriarch puts citus first", "shared_preload_libraries is %q: citus must be first", f.PostgreSQL.Preload)
	}
	r.quiet("Citus %s, %s", c.Version, c.Library)
}

func p1(s string) string { return strings.TrimSpace(s) }

func units(f Facts, r *report) {
	if len(f.Units) == 0 {
		r.ok("no systemd here: see that nothing else starts PostgreSQL")
		return
	}
	for _, u := range slices.Sorted(maps.Keys(f.Units)) {
		switch state := f.Units[u]; {
		case u == "matriarch" && f.Member && state != "enabled":
			r.warn("systemctl enable matriarch", "the unit matriarch is %s: after a reboot the node stays down", state)
		case u != "matriarch" && state == "enabled":
			r.warn("systemctl disable "+u, "the unit %s is enabled: it may start a PostgreSQL that Matriarch does not know", u)
		}
	}
	r.quiet("nothing else starts PostgreSQL")
}

func clock(f Facts, r *report) {
	c := f.Clock
	switch {
	case c.SyncErr != "":
		r.warn("look with 'timedatectl' or 'chronyc tracking'", "whether the clock is synchronised could not be seen: %s", c.SyncErr)
	case !c.Synced:
		r.warn("install chrony or systemd-timesyncd and see that it reaches a time source", "the kernel says that the clock is not synchronised")
	}
	if jump := c.Jump.Abs(); jump > 50*time.Millisecond {
		r.warn("let the time service slew instead of step; look for two of them", "the wall clock jumped by %s while it was looked at", c.Jump.Round(time.Millisecond))
	}
	if c.Drift > 500 || c.Drift < -500 {
		r.fail("look at the hypervisor's time settings and at the clocksource", "the steady clock runs %.0f ppm off the raw one: leases count on less than 500", c.Drift)
	}
	for _, p := range c.Peers {
		switch off := p.Offset.Abs() - p.Within; {
		case off > 30*time.Second:
			r.fail("synchronise both clocks", "the clock of %s is %s from this one: a host so far off may not join", p.Name, p.Offset.Round(time.Second))
		case off > time.Second:
			r.warn("synchronise both clocks: times in logs and certificates suffer, leases do not", "the clock of %s is %s from this one", p.Name, p.Offset.Round(100*time.Millisecond))
		}
	}
	r.quiet("synchronised, no jump, %d other nodes near", len(c.Peers))
}

func clocksource(f Facts, r *report) {
	good := []string{"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen"}
	c := f.Clock
	switch {
	case c.Source == "":
		r.warn("cat /sys/devices/system/clocksource/clocksource0/current_clocksource", "the kernel's clocksource could not be read")
	case slices.Contains(good, c.Source):
		r.ok("%s", c.Source)
	default:
		better := "look for a CPU or hypervisor setting that gives a stable TSC (dmesg | grep -i clocksource)"
		for _, s := range c.Available {
			if slices.Contains(good, s) {
				better = "echo " + s + " > /sys/devices/system/clocksource/clocksource0/current_clocksource, and find out why the kernel gave it up (dmesg | grep -i clocksource)"
				break
			}
		}
		r.warn(better, "%s is slow to read, and the kernel may have had a reason to leave tsc", c.Source)
	}
}

func ports(f Facts, r *report) {
	for _, p := range f.Ports {
		ours := f.AgentPID != 0 || (p.Key == "postgresql.listen" && f.SentinelUp)
		switch {
		case p.Err != "":
			r.fail("change "+p.Key+" in the configuration", "%s %s cannot be listened on: %s", p.Key, p.Addr, p.Err)
		case p.InUse && !ours:
			r.fail("'ss -ltnp' shows by whom: stop it, or change "+p.Key, "%s %s is in use by another program", p.Key, p.Addr)
		case !p.InUse && ours && p.Key != "postgresql.listen":
			r.warn("restart the node: it was configured after it started", "%s %s: the node runs, and nobody listens there", p.Key, p.Addr)
		}
	}
	r.quiet("%d ports free or this node's own", len(f.Ports))
}

func reach(f Facts, r *report) {
	for _, x := range f.Reach {
		switch {
		case x.Err != "":
			r.fail("start the node there, and let this port through every firewall between", "%s of %s, %s, cannot be reached: %s", x.What, x.Node, x.Addr, x.Err)
		case x.Took > 100*time.Millisecond:
			r.warn("look at the network between: every commit waits for a standby's answer, every lease for the leader's", "%s of %s, %s, took %s to answer", x.What, x.Node, x.Addr, x.Took.Round(time.Millisecond))
		}
	}
	if len(f.Reach) == 0 {
		r.ok("no other node is known; --peer HOST:PORT names one")
	}
	r.quiet("%d ports of other nodes answer", len(f.Reach))
}

func names(f Facts, r *report) {
	for _, n := range f.Names {
		switch {
		case n.Err != "" && n.Own:
			r.warn("put it into /etc/hosts", "this host's own name %s is not found: %s", n.Name, n.Err)
		case n.Err != "":
			r.fail("put it into /etc/hosts, or use addresses", "%s is not found: %s", n.Name, n.Err)
		case n.Took > time.Second:
			r.fail("put it into /etc/hosts, or mend /etc/resolv.conf: a failover would wait for it", "%s took %s to be found", n.Name, n.Took.Round(time.Millisecond))
		case n.Took > 100*time.Millisecond:
			r.warn("put it into /etc/hosts", "%s took %s to be found", n.Name, n.Took.Round(time.Millisecond))
		}
	}
	r.quiet("%d names found at once", len(f.Names))
}

// joinAgain is how a node enters anew without a loss.
const joinAgain = "'matriarch token create --uses 1' on another node, here the join line that it prints, then restart the agent: data, configuration and identity stay"

// renewals say what is to be done about a certificate that ends.
var renewals = map[CertUse]string{
	CertNode:     "start the agent, which renews it; one that runs is told by 'matriarch certificates renew', and its log says why it did not by itself",
	CertCA:       "matriarch ca rotate",
	CertPostgres: "start the agent, which renews it; one that runs is told by 'matriarch certificates renew', and its log says why it did not by itself",
	CertBrought:  "replace the files that the configuration names; they are read within ten seconds, and 'matriarch certificates show' says what is wrong with them",
}

// soon is how long before its end a certificate should have been renewed: a quarter of a short life.
func (c Cert) soon() time.Duration {
	const longest = 30 * 24 * time.Hour
	if c.Life == 0 {
		return longest
	}
	return min(longest, c.Life/4)
}

func certificates(f Facts, r *report) {
	for _, name := range f.Strangers {
		r.fail("the CA was replaced while this node was away: join it again: "+joinAgain, "%s shows a certificate of another CA than this node's", name)
	}
	for _, c := range f.Certs {
		left := c.NotAfter.Sub(f.Now)
		switch {
		case c.Err != "" && c.Use == CertBrought:
			r.fail(renewals[c.Use], "%s: %s", c.File, c.Err)
		case c.Err != "":
			r.fail("put it back from a backup, or join again: "+joinAgain, "%s: %s", c.File, c.Err)
		case left <= 0:
			r.fail(renewals[c.Use], "%s has expired on %s", c.File, c.NotAfter.Format(time.DateOnly))
		case left < c.soon():
			r.warn(renewals[c.Use], "%s expires on %s", c.File, c.NotAfter.Format(time.DateOnly))
		}
	}
	if len(f.Certs) == 0 {
		r.ok("none yet")
	}
	r.quiet("%d certificates, none expires soon", len(f.Certs))
}
