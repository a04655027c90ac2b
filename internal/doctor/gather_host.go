package doctor

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"matriarch/internal/config"
)

const (
	syncs     = 50
	syncLimit = 4 * time.Second // for one directory
	watchFor  = 500 * time.Millisecond
)

// disks looks at every directory, once per disk where the fsync is concerned.
func disks(cfg config.Config) []Disk {
	timed := map[uint64]Disk{}
	var out []Disk
	for _, d := range []Disk{{Key: "state_dir", Path: cfg.StateDir}, {Key: "raft_dir", Path: cfg.RaftDir}, {Key: "postgresql.data_dir", Path: cfg.PostgreSQL.DataDir}} {
		d.Path = nearest(d.Path)
		var st unix.Stat_t
		var sf unix.Statfs_t
		if err := errors.Join(unix.Stat(d.Path, &st), unix.Statfs(d.Path, &sf)); err != nil {
			d.Err = err.Error()
			out = append(out, d)
			continue
		}
		d.Device, d.FS = st.Dev, fsName(int64(sf.Type))
		d.Free, d.Total, d.Inodes = sf.Bavail*uint64(sf.Bsize), sf.Blocks*uint64(sf.Bsize), sf.Ffree
		d.ReadOnly = sf.Flags&unix.ST_RDONLY != 0
		if before, ok := timed[d.Device]; ok {
			d.Syncs, d.Median, d.Worst = before.Syncs, before.Median, before.Worst
		} else if !d.ReadOnly {
			timeSyncs(&d)
			timed[d.Device] = d
		}
		out = append(out, d)
	}
	return out
}

// nearest is the directory itself, or the first above it that exists.
func nearest(dir string) string {
	for dir != "/" && dir != "." && dir != "" {
		if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

func fsName(magic int64) string {
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs", unix.NFS_SUPER_MAGIC: "nfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.FUSE_SUPER_MAGIC: "fuse", 0x2fc12fc1: "zfs",
	}
	if n, ok := names[magic]; ok {
		return n
	}
	return fmt.Sprintf("file system %x", magic)
}

// timeSyncs does what a commit does, with a file of its own. The data directory is PostgreSQL's: its parent's disk is as good.
func timeSyncs(d *Disk) {
	dir := d.Path
	if _, err := os.Stat(filepath.Join(dir, "PG_VERSION")); err == nil {
		dir = filepath.Dir(dir)
	}
	file, err := os.CreateTemp(dir, ".matriarch-doctor-")
	if err != nil {
		d.Err = err.Error()
		return
	}
	defer func() { _ = errors.Join(file.Close(), os.Remove(file.Name())) }()
	page := make([]byte, 8192)
	var took []time.Duration
	end := time.Now().Add(syncLimit)
	for i := range syncs {
		began := time.Now()
		if _, err := file.WriteAt(page, int64(i%4)*int64(len(page))); err != nil {
			d.Err = err.Error()
			return
		}
		if err := unix.Fdatasync(int(file.Fd())); err != nil {
			d.Err = "fdatasync: " + err.Error()
			return
		}
		took = append(took, time.Since(began))
		if time.Now().After(end) {
			break
		}
	}
	slices.Sort(took)
	d.Syncs, d.Median, d.Worst = len(took), took[len(took)/2], took[len(took)-1]
}

// memory reads settings, size and limits.
func memory(m Machine, f *Facts) {
	f.Kernel = map[string]string{}
	for key, path := range map[string]string{
		"vm/overcommit_memory": "/proc/sys/vm/overcommit_memory", "vm/swappiness": "/proc/sys/vm/swappiness", "vm/zone_reclaim_mode": "/proc/sys/vm/zone_reclaim_mode",
		"vm/nr_hugepages": "/proc/sys/vm/nr_hugepages", "transparent_hugepage": "/sys/kernel/mm/transparent_hugepage/enabled",
	} {
		if b, err := m.ReadFile(path); err == nil {
			f.Kernel[key] = strings.TrimSpace(string(b))
		}
	}
	if b, err := m.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if words := strings.Fields(line); len(words) == 3 && words[0] == "MemTotal:" {
				kb, _ := strconv.ParseUint(words[1], 10, 64)
				f.MemoryBytes = kb << 10
			}
		}
	}
	pid := "self"
	if f.AgentPID != 0 {
		pid = strconv.Itoa(f.AgentPID)
	}
	if b, err := m.ReadFile("/proc/" + pid + "/limits"); err == nil {
		f.Limits = parseLimits(string(b))
	}
}

// parseLimits reads /proc/PID/limits: name in 26 columns, soft, hard, units.
func parseLimits(text string) map[string]Limit {
	out := map[string]Limit{}
	for line := range strings.Lines(text) {
		if len(line) < 27 {
			continue
		}
		words := strings.Fields(line[26:])
		if len(words) < 2 {
			continue
		}
		soft, err1 := limitOf(words[0])
		hard, err2 := limitOf(words[1])
		if errors.Join(err1, err2) == nil {
			out[strings.TrimSpace(line[:26])] = Limit{soft, hard}
		}
	}
	return out
}

func limitOf(word string) (int64, error) {
	if word == "unlimited" {
		return -1, nil
	}
	return strconv.ParseInt(word, 10, 64)
}

func watchdogOf(m Machine, device string) Watchdog {
	var w Watchdog
	// Only looked at: opening it would start it.
	if _, err := os.Stat(device); err == nil {
		w.Exists = true
	}
	name := filepath.Base(device)
	if name == "watchdog" {
		name = "watchdog0"
	}
	sys := "/sys/class/watchdog/" + name + "/"
	if b, err := m.ReadFile(sys + "identity"); err == nil {
		w.Identity = strings.TrimSpace(string(b))
	}
	if b, err := m.ReadFile(sys + "nowayout"); err == nil {
		w.NoWayOut = strings.TrimSpace(string(b)) == "1"
	}
	return w
}

// stamp is three clocks at one moment.
type stamp struct{ wall, steady, raw time.Duration }

func stamps() stamp {
	read := func(clock int32) time.Duration {
		var ts unix.Timespec
		_ = unix.ClockGettime(clock, &ts) // these three always are
		return time.Duration(ts.Nano())
	}
	return stamp{read(unix.CLOCK_REALTIME), read(unix.CLOCK_MONOTONIC), read(unix.CLOCK_MONOTONIC_RAW)}
}

// timekeeping watches the clocks for at least half a second.
func timekeeping(ctx context.Context, m Machine, from stamp, c *Clock) {
	sys := "/sys/devices/system/clocksource/clocksource0/"
	if b, err := m.ReadFile(sys + "current_clocksource"); err == nil {
		c.Source = strings.TrimSpace(string(b))
	}
	if b, err := m.ReadFile(sys + "available_clocksource"); err == nil {
		c.Available = strings.Fields(string(b))
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		c.SyncErr = err.Error()
	}
	c.Synced, c.MaxError = state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0, time.Duration(tx.Maxerror)*time.Microsecond
	if left := watchFor - (stamps().steady - from.steady); left > 0 {
		t := time.NewTimer(left)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	c.Jump, c.Drift = compare(from, stamps())
}

func compare(a, b stamp) (jump time.Duration, ppm float64) {
	steady, raw := b.steady-a.steady, b.raw-a.raw
	if raw <= 0 {
		return 0, 0
	}
	return (b.wall - a.wall) - steady, float64(steady-raw) / float64(raw) * 1e6
}

func certificate(use CertUse, file string) Cert {
	c := Cert{File: file, Use: use}
	data, err := os.ReadFile(file)
	if err != nil {
		c.Err = err.Error()
		return c
	}
	block, _ := pem.Decode(data)
	if block == nil {
		c.Err = "holds no certificate"
		return c
	}
	x, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		c.Err = err.Error()
		return c
	}
	c.NotAfter, c.Life = x.NotAfter, x.NotAfter.Sub(x.NotBefore)
	return c
}
