package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func diskSpace(f Facts, r *report) {
	for _, d := range f.Disks {
		where := fmt.Sprintf("%s (%s, %s)", d.Key, d.Path, d.FS)
		switch {
		case d.Err != "":
			r.fail("run as root, or choose another directory", "%s: %s", where, d.Err)
		case d.ReadOnly:
			r.fail("look at the kernel's log for errors of the disk, then remount", "%s is read-only", where)
		case d.Free < 256*mib || d.Free < d.Total/50:
			r.fail("make room: docs/runbooks/disk-full.md", "%s has %d MB left", where, d.Free/mib)
		case d.Free < gib || d.Free < d.Total/10:
			r.warn("make room before it is needed: a clone sets the old data directory aside", "%s has %d MB left of %d", where, d.Free/mib, d.Total/mib)
		}
		if d.Err == "" && d.Inodes < 10000 && d.Inodes > 0 {
			r.warn("find what makes many small files there", "%s has %d inodes left", where, d.Inodes)
		}
		if d.FS == "nfs" || d.FS == "fuse" || d.FS == "tmpfs" || d.FS == "overlayfs" {
			r.warn("use a local disk with ext4 or xfs", "%s is on %s: what is synced there may not outlive a crash, or may hang", d.Key, d.FS)
		}
	}
	r.quiet("room on all of %d directories", len(f.Disks))
}

func diskFsync(f Facts, r *report) {
	var parts []string
	for _, d := range f.Disks {
		if d.Err != "" || d.ReadOnly || d.Syncs == 0 {
			continue
		}
		took := fmt.Sprintf("%s: median %s, worst %s of %d", d.Key, round(d.Median), round(d.Worst), d.Syncs)
		switch {
		case d.Worst > 3*time.Second:
			r.fail("find what else writes there; give raft_dir a disk of its own", "%s: a stall of 3 s on a majority of the nodes stops every primary", took)
		case d.Worst > 500*time.Millisecond || d.Median > 10*time.Millisecond:
			r.warn("find what else writes there; use disks with a protected write cache", "%s: every commit waits for that", took)
		default:
			parts = append(parts, took)
		}
	}
	if len(parts) == 0 && len(r.found) == 0 {
		r.warn("see disk-space", "no directory could be written, so nothing was timed")
	}
	r.quiet("%s", strings.Join(parts, "; "))
}

func round(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	return d.Round(10 * time.Microsecond)
}

func diskShared(f Facts, r *report) {
	by := map[string]Disk{}
	for _, d := range f.Disks {
		by[d.Key] = d
	}
	raft, data := by["raft_dir"], by["postgresql.data_dir"]
	if raft.FS != "" && data.FS != "" && raft.Device == data.Device {
		r.warn("put raft_dir on another disk when the data's is busy: a lease is only as steady as its fsync", "raft_dir and the data directory share a disk")
		return
	}
	r.ok("raft_dir has another disk than the data directory")
}

func kernel(f Facts, r *report) {
	get := func(path string) (int64, bool) {
		n, err := strconv.ParseInt(strings.TrimSpace(f.Kernel[path]), 10, 64)
		return n, err == nil
	}
	if n, ok := get("vm/overcommit_memory"); ok && n != 2 {
		r.warn("sysctl vm.overcommit_memory=2 (with vm.overcommit_ratio to suit)", "vm.overcommit_memory is %d: short of memory, the kernel kills a backend, and PostgreSQL restarts all sessions", n)
	}
	if n, ok := get("vm/swappiness"); ok && n > 10 {
		r.warn("sysctl vm.swappiness=1", "vm.swappiness is %d: idle sessions are swapped out for the sake of the file cache", n)
	}
	if n, ok := get("vm/zone_reclaim_mode"); ok && n != 0 {
		r.warn("sysctl vm.zone_reclaim_mode=0", "vm.zone_reclaim_mode is %d: memory of other sockets is left unused", n)
	}
	if strings.Contains(f.Kernel["transparent_hugepage"], "[always]") {
		r.warn("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled", "transparent huge pages are always on: their compaction stalls backends")
	}
	if n, ok := get("vm/nr_hugepages"); ok && n == 0 && f.MemoryBytes > 32*gib {
		r.warn("set vm.nr_hugepages for shared_buffers ('postgres -C shared_memory_size_in_huge_pages' tells how many)", "no huge pages on a host with %d GB of memory", f.MemoryBytes/gib)
	}
	if len(f.Kernel) == 0 {
		r.warn("look at /proc/sys/vm by hand", "the kernel's settings could not be read")
	}
	r.quiet("memory settings suit a database")
}

func limits(f Facts, r *report) {
	whose := "of this shell (the unit sets its own)"
	if f.AgentPID != 0 {
		whose = "of the running node"
	}
	want := map[string]struct {
		least int64
		unit  string
		why   string
	}{
		"Max open files":    {4096, "LimitNOFILE=65536", "connections and files of PostgreSQL"},
		"Max locked memory": {64 * mib, "LimitMEMLOCK=infinity", "the sentinel locks its memory, so that it can fence while the host swaps"},
		"Max processes":     {4096, "TasksMax=infinity", "every session of PostgreSQL is a process"},
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w := want[name]
		l, ok := f.Limits[name]
		// Root may lock as much as it wants, and have as many processes.
		if !ok || l.Soft == -1 || l.Soft >= w.least || (f.UID == 0 && name != "Max open files") {
			continue
		}
		if f.AgentPID == 0 && l.Hard >= w.least {
			continue
		}
		r.warn("use the unit that comes with Matriarch: "+w.unit, "%s %s: %d, less than %d: %s", name, whose, l.Soft, w.least, w.why)
	}
	r.quiet("%d limits %s suffice", len(want), whose)
}

func watchdog(f Facts, r *report) {
	w, mode := f.Watchdog, f.Config.Sentinel.Watchdog
	need := r.warn
	if mode == "required" {
		need = r.fail
	}
	switch {
	case mode == "off" && w.Exists:
		r.ok("off; %s is there and could be used (sentinel.watchdog)", f.Config.Sentinel.WatchdogDevice)
	case mode == "off":
		r.ok("off")
	case !w.Exists:
		need("load a driver: 'modprobe softdog', or better the hardware's; or set sentinel.watchdog: off", "sentinel.watchdog is %s, and there is no %s", mode, f.Config.Sentinel.WatchdogDevice)
	case w.NoWayOut:
		need("load the driver with nowayout=0: an orderly stop of PostgreSQL would reset the machine", "the driver %s cannot be stopped (nowayout)", w.Identity)
	default:
		r.ok("%s: %s, %s", mode, f.Config.Sentinel.WatchdogDevice, w.Identity)
	}
}

func rights(f Facts, r *report) {
	if f.UserErr != "" {
		r.fail("install PostgreSQL's package, which makes the user, or name another in postgresql.user", "PostgreSQL's user %s: %s", f.User, f.UserErr)
	}
	if f.UID != 0 {
		r.warn("run the node as root: it still starts PostgreSQL as its own user", "not root: no real-time priority, no locked memory, no protection from the OOM killer; and what root owns was not examined")
	}
	for _, x := range f.Rights {
		switch {
		case x.Err != "":
			r.fail("run as the user that runs the node, or repeat the join", "%s: %s", x.Path, x.Err)
		case x.Mode&^x.Limit != 0:
			r.fail(fmt.Sprintf("chmod %04o %s; if others had access to this host, take it as leaked", x.Mode&x.Limit, x.Path), "%s has mode %04o: others may read it", x.Path, x.Mode)
		case x.Want >= 0 && x.UID != x.Want:
			r.fail(fmt.Sprintf("chown %d %s", x.Want, x.Path), "%s belongs to user %d, not %d", x.Path, x.UID, x.Want)
		}
	}
	r.quiet("root runs the node, %s runs PostgreSQL, secrets are private", f.User)
}
