package fence

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// alarm rings at an instant of CLOCK_BOOTTIME, which counts suspend. A nil alarm never rings.
type alarm struct {
	fd   int
	file *os.File // of fd
	at   time.Duration
	bell chan struct{}
}

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an alarm: %w", err)
	}
	a := &alarm{fd: fd, file: os.NewFile(uintptr(fd), "alarm"), bell: make(chan struct{}, 1)}
	go a.listen()
	return a, nil
}

func (a *alarm) listen() {
	var times [8]byte
	for {
		if _, err := a.file.Read(times[:]); err != nil {
			return // closed
		}
		select {
		case a.bell <- struct{}{}:
		default:
		}
	}
}

// set moves the alarm to at, from any other instant. One that has passed rings at once; the same again does not.
func (a *alarm) set(at time.Duration) error {
	if at == a.at {
		return nil
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(at, 1).Nanoseconds())} // 0 would turn it off
	if err := unix.TimerfdSettime(a.fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return fmt.Errorf("set the alarm: %w", err)
	}
	a.at = at
	return nil
}

func (a *alarm) rings() <-chan struct{} {
	if a == nil {
		return nil
	}
	return a.bell
}

func (a *alarm) close() {
	if a != nil {
		_ = a.file.Close()
	}
}

// due is when the deadline asks for something next.
func (s *sentinel) due(now Stamp) (at Stamp, ok bool) {
	if end, armed := s.hardEnd(now); armed {
		at, ok = end, true
		if !s.fenced {
			at = end.Add(-SoftStop)
		}
	}
	if s.killAt != nil && (!ok || s.killAt.Until(now) < at.Until(now)) {
		at, ok = *s.killAt, true
	}
	return at, ok
}

// nearer is when to look again at what is due in left. Go's timers go by a slewed clock: half the way, then half of the rest, keeps that small.
func (s *sentinel) nearer(left time.Duration) time.Duration {
	if s.alarm == nil {
		return min(left, checkEvery)
	}
	return min(left, max(left/2, checkEvery))
}

// wind sets the alarm, which rings when the machine resumes from a suspend that lasted beyond what is due: Go's timers stand still meanwhile.
func (s *sentinel) wind(now Stamp) {
	if s.alarm == nil || s.phase == idle || s.phase == killing {
		return
	}
	at, ok := s.due(now)
	if !ok {
		return
	}
	if err := s.alarm.set(at.Boot); err != nil {
		s.log.Error("the deadline is looked at often from now on", "error", err)
		s.alarm.close()
		s.alarm = nil
	}
}
