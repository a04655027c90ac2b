package fence

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Stamp is one instant on both clocks that leases are measured by. It has a meaning on this host until its next boot only.
type Stamp struct {
	Raw  time.Duration // CLOCK_MONOTONIC_RAW: not slewed by NTP, stops in suspend
	Boot time.Duration // CLOCK_BOOTTIME: slewed, counts suspend
}

// Clock reads both clocks. A clock that cannot be read is at its end, so that every deadline has passed.
func Clock() Stamp {
	return Stamp{Raw: read(unix.CLOCK_MONOTONIC_RAW), Boot: read(unix.CLOCK_BOOTTIME)}
}

func read(clock int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return math.MaxInt64
	}
	return time.Duration(ts.Nano())
}

// Add returns the stamp d later on both clocks.
func (s Stamp) Add(d time.Duration) Stamp { return Stamp{Raw: s.Raw + d, Boot: s.Boot + d} }

// Until returns the time from now to s on the clock that gets there first; zero or less: s is reached.
func (s Stamp) Until(now Stamp) time.Duration { return min(s.Raw-now.Raw, s.Boot-now.Boot) }

// Epoch numbers the leases of a group: incarnation of the control plane, then a counter. The zero Epoch stands before all.
type Epoch struct {
	Inc uint64 `json:"inc"`
	N   uint64 `json:"n"`
}

// Less reports whether e is older than o.
func (e Epoch) Less(o Epoch) bool { return e.Inc < o.Inc || (e.Inc == o.Inc && e.N < o.N) }

// IsZero reports whether e stands before every lease.
func (e Epoch) IsZero() bool { return e == Epoch{} }

// String renders the epoch as incarnation.counter.
func (e Epoch) String() string { return fmt.Sprintf("%d.%d", e.Inc, e.N) }

// Deadline is the end of a lease: the instant by which no process of its primary may be left.
type Deadline struct {
	Instance string        `json:"instance"` // sentinel instance that the lease was granted to
	Epoch    Epoch         `json:"epoch"`
	Raw      time.Duration `json:"raw_ns"`
	Boot     time.Duration `json:"boot_ns"`
}

// NewDeadline makes the deadline of a lease that ends at s.
func NewDeadline(instance string, e Epoch, s Stamp) Deadline {
	return Deadline{Instance: instance, Epoch: e, Raw: s.Raw, Boot: s.Boot}
}

// Stamp returns the instant of the deadline.
func (d Deadline) Stamp() Stamp { return Stamp{Raw: d.Raw, Boot: d.Boot} }

// Left returns the time that remains at now, on the clock that gets there first.
func (d Deadline) Left(now Stamp) time.Duration { return d.Stamp().Until(now) }

// Passed reports whether either clock has reached the deadline.
func (d Deadline) Passed(now Stamp) bool { return d.Left(now) <= 0 }
