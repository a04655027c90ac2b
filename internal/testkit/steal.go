package testkit

import (
	"sync"
	"time"

	"github.com/prometheus/procfs"
)

// cpu is the time, in seconds since the boot, that the processors worked, and that they had to work but the host of this virtual
// machine gave to others.
type cpu struct {
	at          time.Time
	busy, stole float64
}

var looks struct {
	mu  sync.Mutex
	all []cpu
}

// watchCPU looks every second, for as long as the tests run.
func watchCPU() {
	for tick := time.Tick(time.Second); ; <-tick {
		if c, err := lookAtCPU(); err == nil {
			looks.mu.Lock()
			looks.all = append(looks.all, c)
			looks.mu.Unlock()
		}
	}
}

func lookAtCPU() (cpu, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return cpu{}, err
	}
	st, err := fs.Stat()
	t := st.CPUTotal
	return cpu{time.Now(), t.User + t.Nice + t.System + t.IRQ + t.SoftIRQ, t.Steal}, err
}

// Slowed is how many times longer than on a machine of one's own work took since a moment, by what the host of this virtual
// machine kept from it; 1 where it kept nothing or does not say.
func Slowed(since time.Time) float64 {
	looks.mu.Lock()
	defer looks.mu.Unlock()
	return slowed(looks.all, since)
}

func slowed(all []cpu, since time.Time) float64 {
	if len(all) == 0 {
		return 1
	}
	first, last := all[0], all[len(all)-1]
	for _, c := range all {
		if c.at.After(since) {
			break
		}
		first = c
	}
	busy, stole := last.busy-first.busy, last.stole-first.stole
	if busy <= 0 || stole <= 0 {
		return 1
	}
	return min((busy+stole)/busy, 20)
}
