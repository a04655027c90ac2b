package main

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// service tells systemd how the node is. Without systemd it does nothing.
type service struct {
	log    *slog.Logger
	every  time.Duration // between two signs of life; 0: nobody waits for them
	patted *atomic.Int64 // when the last one was sent, in nanoseconds
}

func newService(log *slog.Logger) service {
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not served", "error", err)
	}
	return service{log, within / 4, &atomic.Int64{}}
}

func (s service) ready() { s.tell(daemon.SdNotifyReady) }

func (s service) status(text string) { s.tell("STATUS=" + text) }

// stopping begins the time that the unit's TimeoutStopSec allows.
func (s service) stopping(what string) { s.tell(daemon.SdNotifyStopping + "\nSTATUS=" + what) }

// alive is a sign of life of the agent's loop. A loop that hangs gives none, and systemd starts the agent anew; PostgreSQL and its sentinel
// are not touched.
func (s service) alive() {
	if s.every == 0 {
		return
	}
	now := time.Now().UnixNano()
	if last := s.patted.Load(); now-last < int64(s.every) || !s.patted.CompareAndSwap(last, now) {
		return
	}
	s.tell(daemon.SdNotifyWatchdog)
}

func (s service) tell(what string) {
	if _, err := daemon.SdNotify(false, what); err != nil {
		s.log.Debug("systemd not told", "what", what, "error", err)
	}
}
