package fence

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// WatchdogMode says whether a primary runs under the kernel's watchdog.
type WatchdogMode string

// The modes.
const (
	WatchdogOff       WatchdogMode = "off"
	WatchdogAutomatic WatchdogMode = "automatic" // used when it can be had
	WatchdogRequired  WatchdogMode = "required"  // no promotion without it
)

// WatchdogState tells what the watchdog does.
type WatchdogState string

// The states.
const (
	WatchdogIdle   WatchdogState = "idle"   // the device is there; it is opened with the next promotion
	WatchdogArmed  WatchdogState = "armed"  // the machine is reset unless the sentinel pats it
	WatchdogFailed WatchdogState = "failed" // see Problem
)

// WatchdogRequest sets the watchdog. It counts from the next promotion on.
type WatchdogRequest struct {
	Mode   WatchdogMode `json:"mode"`
	Device string       `json:"device"` // absolute path
}

// WatchdogStatus is the watchdog as the sentinel has it; a sentinel that was told nothing, or off, shows none.
type WatchdogStatus struct {
	WatchdogRequest
	State     WatchdogState `json:"state"`
	TimeoutMS int64         `json:"timeout_ms,omitempty"` // the device's, while it is open
	Problem   string        `json:"problem,omitempty"`
}

const (
	// watchdogTimeout is asked of the device, which may know longer ones only.
	watchdogTimeout = 2 * time.Second
	patEvery        = 400 * time.Millisecond
	// In the last moments in which it may be patted it is patted more often: an orderly fence has the whole of its timeout then.
	lastMoments   = 100 * time.Millisecond
	patEveryAtEnd = 20 * time.Millisecond
	doubt         = 30 * time.Second // a watchdog that was not to be had counts as failed for so long
	// killLead is how long before the end everything is killed while the watchdog is armed: after an orderly fence nothing is left when
	// the machine would be reset.
	killLead = 300 * time.Millisecond
)

// device is an open watchdog.
type device interface {
	pat() error
	// setTimeout asks for d and answers what the device really takes.
	setTimeout(d time.Duration) (time.Duration, error)
	// disarm stops it for good and closes it. After an error it counts on and stays open.
	disarm() error
	// abandon closes it without stopping it.
	abandon()
}

// openDevice opens a watchdog, which begins to count with that. Tests put another one in its place.
type openDevice func(path string) (device, error)

// mayPat is the rule: a machine whose watchdog is patted now is reset by now + timeout, which must not be later than end.
func mayPat(now, end Stamp, timeout time.Duration) bool { return end.Until(now) >= timeout }

// patIn returns the time until the next pat of a watchdog patted at last; ok is false when none may come before end any more.
func patIn(now, last, end Stamp, timeout time.Duration) (d time.Duration, ok bool) {
	if !mayPat(now, end, timeout) {
		return 0, false
	}
	left := end.Until(now) - timeout
	if left <= lastMoments {
		return max(0, last.Add(patEveryAtEnd).Until(now)), true
	}
	return max(0, min(last.Add(patEvery).Until(now), left-lastMoments)), true
}

// watchdog is the sentinel's hold on the device.
type watchdog struct {
	WatchdogRequest
	log     *slog.Logger
	open    openDevice
	dev     device // nil: closed
	timeout time.Duration
	last    Stamp // pat
	problem string
	failed  Stamp // when it was not to be had
	stuck   bool  // it cannot be stopped: patted for ever
}

// arm opens the device for a server that must end at end. Armed already is no error.
func (w *watchdog) arm(now, end Stamp) error {
	if w.Mode == "" || w.Mode == WatchdogOff || (w.dev != nil && !w.stuck) {
		return nil
	}
	err := w.tryArm(now, end)
	w.problem = ""
	if err == nil {
		w.log.Info("watchdog armed", "device", w.Device, "timeout", w.timeout.String())
		return nil
	}
	w.problem, w.failed = err.Error(), now
	w.log.Error("watchdog not armed", "device", w.Device, "error", err)
	if w.Mode == WatchdogRequired {
		return refuse(ErrWatchdog, "watchdog is required: %v", err)
	}
	return nil
}

func (w *watchdog) tryArm(now, end Stamp) error {
	if w.dev == nil {
		dev, err := w.open(w.Device)
		if err != nil {
			return fmt.Errorf("open watchdog: %w: load a driver (modprobe softdog), give this user the right to it, and see that nobody else uses it (systemd: RuntimeWatchdogSec=0)", err)
		}
		w.dev = dev
	}
	took, err := w.dev.setTimeout(watchdogTimeout)
	switch {
	case err != nil:
		err = fmt.Errorf("set the watchdog's timeout: %w", err)
	case took < time.Second:
		err = fmt.Errorf("set the watchdog's timeout: it answers %v, at least 1s is needed", took)
	case !mayPat(now, end, took):
		err = fmt.Errorf("the watchdog's shortest timeout is %v, which is too long for a lease that ends in %v: raise the setting ttl", took, end.Until(now).Round(time.Millisecond))
	default:
		w.timeout, w.stuck = took, false
		err = w.dev.pat()
		w.last = now
	}
	if err != nil {
		w.disarm(now)
	}
	return err
}

// armed reports whether a missed pat resets the machine because of the server.
func (w *watchdog) armed() bool { return w.dev != nil && !w.stuck }

// tend pats when that is due and allowed. end is when the server must be gone.
func (w *watchdog) tend(now, end Stamp) {
	if w.dev == nil {
		return
	}
	if !w.stuck {
		if d, ok := patIn(now, w.last, end, w.timeout); !ok || d > 0 {
			return
		}
	} else if w.last.Add(patEvery).Until(now) > 0 {
		return
	}
	if err := w.dev.pat(); err != nil {
		if w.problem == "" {
			w.log.Error("watchdog not patted", "device", w.Device, "error", err)
		}
		w.problem = fmt.Sprintf("pat the watchdog: %v", err)
		return
	}
	w.problem, w.last = w.stuckText(), now
}

// next returns the time until tend has something to do.
func (w *watchdog) next(now, end Stamp) (time.Duration, bool) {
	switch {
	case w.dev == nil:
		return 0, false
	case w.stuck:
		return w.last.Add(patEvery).Until(now), true
	}
	return patIn(now, w.last, end, w.timeout)
}

// disarm stops the device once nothing of the server is left. One that its driver does not let stop is patted on, since the machine is well.
func (w *watchdog) disarm(now Stamp) {
	if w.dev == nil || w.stuck {
		return
	}
	if err := w.dev.disarm(); err != nil {
		w.stuck = true
		w.problem = w.stuckText()
		w.log.Error("watchdog not stopped: it is patted on", "device", w.Device, "error", err)
		w.last = now.Add(-patEvery)
		return
	}
	w.dev = nil
	w.log.Info("watchdog stopped", "device", w.Device)
}

func (w *watchdog) stuckText() string {
	if !w.stuck {
		return ""
	}
	return "it cannot be stopped (nowayout): the machine is reset when the sentinel ends; load its driver with nowayout=0"
}

// close is the sentinel's end.
func (w *watchdog) close() {
	if w.dev == nil {
		return
	}
	if w.stuck || w.dev.disarm() != nil {
		w.log.Error("the machine will be reset: its watchdog cannot be stopped", "device", w.Device, "timeout", w.timeout.String())
		w.dev.abandon()
	}
	w.dev = nil
}

// status looks at a device that is not open only: opening it would arm it.
func (w *watchdog) status(now Stamp) *WatchdogStatus {
	if w.Mode == "" || w.Mode == WatchdogOff {
		return nil
	}
	st := WatchdogStatus{WatchdogRequest: w.WatchdogRequest, State: WatchdogIdle, Problem: w.problem}
	switch {
	case w.dev != nil:
		st.State, st.TimeoutMS = WatchdogArmed, w.timeout.Milliseconds()
	case st.Problem != "" && w.failed.Add(doubt).Until(now) > 0:
		st.State = WatchdogFailed
	default:
		st.Problem = ""
		if err := unix.Access(w.Device, unix.W_OK); err != nil {
			st.State, st.Problem = WatchdogFailed, fmt.Sprintf("open watchdog %s: %v", w.Device, err)
		}
	}
	return &st
}

// kernelWatchdog is a device of the kernel's watchdog interface.
type kernelWatchdog struct{ f *os.File }

func openKernelWatchdog(path string) (device, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return kernelWatchdog{f}, nil
}

func (k kernelWatchdog) pat() error {
	_, err := k.f.Write([]byte{0})
	return err
}

func (k kernelWatchdog) setTimeout(d time.Duration) (time.Duration, error) {
	fd := int(k.f.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, int(d/time.Second)); err != nil {
		return 0, fmt.Errorf("WDIOC_SETTIMEOUT: %w", err)
	}
	took, err := unix.IoctlGetInt(fd, unix.WDIOC_GETTIMEOUT)
	if err != nil {
		return 0, fmt.Errorf("WDIOC_GETTIMEOUT: %w", err)
	}
	return time.Duration(int32(took)) * time.Second, nil
}

// disarm asks the driver first: one loaded with nowayout says that it is busy, while after a close without its consent the machine is reset.
func (k kernelWatchdog) disarm() error {
	err := unix.IoctlSetPointerInt(int(k.f.Fd()), unix.WDIOC_SETOPTIONS, unix.WDIOS_DISABLECARD)
	if err == unix.EBUSY {
		return fmt.Errorf("stop the watchdog: %w", err)
	}
	if _, err := k.f.Write([]byte("V")); err != nil {
		return fmt.Errorf("stop the watchdog: %w", err)
	}
	return k.f.Close()
}

func (k kernelWatchdog) abandon() { _ = k.f.Close() }
