package fence

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// capIPCLock lifts the limit of locked memory.
const capIPCLock = 14

// harden makes the process small and hard to starve. What is not allowed is left: the fence stays right, only less punctual under stress.
func harden(log *slog.Logger) {
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(25)
	steps := []struct {
		name string
		do   func() error
	}{
		{"lock memory", lockMemory},
		{"real-time priority", realTime},
		{"protect from the OOM killer", func() error { return oomScore(os.Getpid(), -1000) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			log.Info("hardening left out", "step", s.name, "error", err)
		}
	}
}

// lockMemory keeps pages in memory once they are touched. Under a limit it must not try: later allocations would fail and end the process.
func lockMemory() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil {
		return fmt.Errorf("read the limit of locked memory: %w", err)
	}
	if lim.Cur != unix.RLIM_INFINITY && !capable(capIPCLock) {
		return fmt.Errorf("lock memory: limited to %d bytes; set LimitMEMLOCK=infinity", lim.Cur)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	return nil
}

func capable(c uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[c/32].Effective&(1<<(c%32)) != 0
}

// realTime raises every thread, since a timer may wake any of them. Threads made later inherit it. The calling thread is the one that forks
// the postmaster, which must not inherit it.
func realTime() error {
	self := unix.Gettid()
	for range 2 { // the second pass finds threads born during the first
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list threads: %w", err)
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}
			if tid == self {
				attr.Flags = unix.SCHED_FLAG_RESET_ON_FORK
			}
			if err := unix.SchedSetAttr(tid, &attr, 0); err != nil && err != unix.ESRCH {
				return fmt.Errorf("set SCHED_FIFO: %w", err)
			}
		}
	}
	return nil
}

func oomScore(pid, score int) error {
	if err := os.WriteFile(procPath(pid, "oom_score_adj"), []byte(strconv.Itoa(score)), 0); err != nil {
		return fmt.Errorf("set the OOM score of %d: %w", pid, err)
	}
	return nil
}
