package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
	"matriarch/pgmanager"
	"matriarch/pgmanager/fence"
)

// SentinelConfig tells how to reach the sentinel, and how to start one.
type SentinelConfig struct {
	Spawn   fence.SpawnConfig
	DataDir string
	// Watchdog is told to every sentinel that is met.
	Watchdog fence.WatchdogRequest
	Log      *slog.Logger
}

// Sentinel is the agent's connection to the parent of PostgreSQL.
type Sentinel struct {
	cfg    SentinelConfig
	pg     *pgmanager.Manager
	events chan struct{}
	taken  chan struct{}
	once   sync.Once

	dialing sync.Mutex // held while another connection is made: the newest one wins, also over one's own

	mu     sync.Mutex
	client *fence.Client
	last   fence.Status
	words  *lastWords
}

// lastWords are what the server's log says of one of its ends.
type lastWords struct {
	ended time.Time
	done  chan struct{} // closed when text is known
	text  string
}

// wordsWait is how long an answer of the sentinel may be held up for them: the log's disk may hang, and the lease must not wait for it.
const wordsWait = 100 * time.Millisecond

// OpenSentinel connects to the sentinel that runs, or starts one.
func OpenSentinel(ctx context.Context, cfg SentinelConfig, pg *pgmanager.Manager) (*Sentinel, error) {
	s := &Sentinel{cfg: cfg, pg: pg, events: make(chan struct{}, 1), taken: make(chan struct{})}
	if _, err := fence.Peek(ctx, cfg.Spawn.Socket); err != nil {
		// The sentinel died, perhaps with the postmaster, and a session of the latter may live a moment longer.
		if _, running := pg.RunningPostmaster(); !running {
			if err := fence.KillAll(ctx, cfg.DataDir); err != nil {
				return nil, fmt.Errorf("end what an earlier PostgreSQL left: %w", err)
			}
		}
	}
	if err := fence.Spawn(ctx, cfg.Spawn); err != nil {
		return nil, err
	}
	if err := s.dial(ctx); err != nil {
		return nil, fmt.Errorf("connect to the sentinel: %w", err)
	}
	return s, nil
}

// Taken is closed when another agent has taken the sentinel over: this one must end.
func (s *Sentinel) Taken() <-chan struct{} { return s.taken }

func (s *Sentinel) dial(ctx context.Context) error {
	c, err := fence.Dial(ctx, s.cfg.Spawn.Socket)
	if err != nil {
		return err
	}
	st, err := s.tellWatchdog(ctx, c)
	if err != nil {
		_ = c.Close()
		return err
	}
	s.mu.Lock()
	s.client, s.last = c, st
	s.mu.Unlock()
	go s.listen(c)
	return nil
}

// tellWatchdog hands the setting over. A sentinel of an older version knows none, which shows as a failure.
func (s *Sentinel) tellWatchdog(ctx context.Context, c *fence.Client) (fence.Status, error) {
	w := s.cfg.Watchdog
	if w.Mode == "" {
		return c.Greeting(), nil
	}
	st, err := c.Watchdog(ctx, w)
	if errors.Is(err, fence.ErrUnsupported) {
		return c.Greeting(), nil
	}
	return st, err
}

func (s *Sentinel) listen(c *fence.Client) {
	for e := range c.Events() {
		if e.Kind == fence.Superseded {
			s.once.Do(func() { close(s.taken) })
		}
		select {
		case s.events <- struct{}{}:
		default:
		}
	}
}

func (s *Sentinel) conn() *fence.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client
}

// Close leaves the sentinel and PostgreSQL running.
func (s *Sentinel) Close() error { return s.conn().Close() }

// Shutdown ends the sentinel; no process of PostgreSQL may be left.
func (s *Sentinel) Shutdown(ctx context.Context) error { return s.conn().Shutdown(ctx) }

// Instance implements agent.Sentinel.
func (s *Sentinel) Instance() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.Instance
}

// Status is the sentinel's last own answer.
func (s *Sentinel) Status() fence.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Events implements agent.Sentinel.
func (s *Sentinel) Events() <-chan struct{} { return s.events }

// Remembered implements agent.Sentinel.
func (s *Sentinel) Remembered() (fsm.Epoch, lease.Stamp, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.last.Deadline
	if d == nil || d.Instance != s.last.Instance {
		return fsm.Epoch{}, lease.Stamp{}, false
	}
	return fsm.Epoch(d.Epoch), lease.Stamp{Raw: d.Raw, Boot: d.Boot}, true
}

// Ping implements agent.Sentinel. A connection that broke is made anew as long as the sentinel lives.
func (s *Sentinel) Ping(ctx context.Context) (decide.Sentinel, error) {
	c := s.conn()
	st, err := c.Status(ctx)
	if errors.Is(err, fence.ErrClosed) {
		st, err = s.again(ctx, c)
	}
	if err != nil {
		return decide.Sentinel{}, err
	}
	s.mu.Lock()
	s.last = st
	s.mu.Unlock()
	d := translate(st, s.cfg.Watchdog.Mode)
	if x := st.LastExit; x != nil && !x.Fenced {
		if words := s.lastWords(x.At); words != "" {
			d.Exit += ": " + words
		}
	}
	return d, nil
}

// lastWords looks them up once for each end; empty until they are known.
func (s *Sentinel) lastWords(ended time.Time) string {
	s.mu.Lock()
	w := s.words
	if w == nil || !w.ended.Equal(ended) {
		w = &lastWords{ended: ended, done: make(chan struct{})}
		s.words = w
		go func() {
			w.text = s.pg.LastWords()
			close(w.done)
		}()
	}
	s.mu.Unlock()
	select {
	case <-w.done:
		return w.text
	case <-time.After(wordsWait):
		return ""
	}
}

// again dials once more after a connection broke. Nobody listening means that the sentinel is gone; silence does not.
func (s *Sentinel) again(ctx context.Context, broken *fence.Client) (fence.Status, error) {
	if !s.dialing.TryLock() {
		return fence.Status{}, errors.New("another connection to the sentinel is being made")
	}
	defer s.dialing.Unlock()
	if c := s.conn(); c != broken {
		return c.Status(ctx)
	}
	select {
	case <-s.taken:
		return fence.Status{}, errors.New("another agent has taken the sentinel over")
	default:
	}
	err := s.dial(ctx)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && ctx.Err() == nil {
		return fence.Status{}, fmt.Errorf("%w: %w", agent.ErrSentinelGone, err)
	}
	if err != nil {
		return fence.Status{}, err
	}
	return s.conn().Status(ctx)
}

func translate(st fence.Status, mode fence.WatchdogMode) decide.Sentinel {
	d := decide.Sentinel{
		Connected: true, Postmaster: st.Postmaster, Primary: st.Role == fence.RolePrimary, Epoch: fsm.Epoch(st.Epoch), Adopted: st.Weak,
	}
	if st.Postmaster == 0 && st.Left > 0 {
		d.Postmaster, d.Remains = st.SentinelPID, true // something of it is left: not gone yet
	}
	if x := st.LastExit; x != nil {
		d.Exit = x.Reason
	}
	d.Watchdog, d.Unfit = watchdogText(st.Watchdog, mode)
	return d
}

// watchdogText shows the watchdog, and says why a required one forbids a promotion.
func watchdogText(w *fence.WatchdogStatus, mode fence.WatchdogMode) (text, unfit string) {
	if mode == "" || mode == fence.WatchdogOff {
		return "", ""
	}
	if w == nil {
		w = &fence.WatchdogStatus{State: fence.WatchdogFailed, Problem: "the sentinel is of an older version: restart it with PostgreSQL"}
	}
	text = fmt.Sprintf("%s, %s", mode, w.State)
	if w.Problem != "" {
		text += ": " + w.Problem
	}
	if mode == fence.WatchdogRequired && w.State == fence.WatchdogFailed {
		unfit = "watchdog is required, and failed: " + w.Problem
	}
	return text, unfit
}

// Start implements agent.Sentinel.
func (s *Sentinel) Start(ctx context.Context) error {
	c, err := s.pg.StartCommand(ctx)
	if err != nil {
		return err
	}
	_, err = s.conn().Start(ctx, fence.StartRequest{Argv: c.Argv, Env: c.Env, Dir: c.Dir, UID: c.UID, GID: c.GID, Groups: c.Groups, LogFile: c.LogFile})
	return err
}

const (
	fastStop      = 30 * time.Second
	immediateStop = time.Second
)

// Stop implements agent.Sentinel: it returns when no process is left.
func (s *Sentinel) Stop(ctx context.Context, immediate bool) error {
	r := fence.StopRequest{Mode: fence.Fast, TimeoutMS: fastStop.Milliseconds()}
	if immediate {
		r = fence.StopRequest{Mode: fence.Immediate, TimeoutMS: immediateStop.Milliseconds()}
	}
	_, err := s.conn().Stop(ctx, r)
	if errors.Is(err, fence.ErrNotRunning) {
		return nil
	}
	return err
}

// Promote implements agent.Sentinel.
func (s *Sentinel) Promote(ctx context.Context, e fsm.Epoch) error {
	_, err := s.conn().Promote(ctx, fence.Epoch(e))
	if errors.Is(err, fence.ErrWatchdog) {
		return fmt.Errorf("%w: %w", agent.ErrUnfit, err)
	}
	if errors.Is(err, fence.ErrEpoch) {
		// A server that runs under an epoch is refused with this code, too: that one is stopped first.
		if st, serr := s.conn().Status(ctx); serr == nil && st.Role == fence.RoleStandby && st.Epoch.IsZero() {
			return fmt.Errorf("%w: %w", agent.ErrSpent, err)
		}
	}
	return err
}

// Renounce implements agent.Sentinel.
func (s *Sentinel) Renounce(ctx context.Context, e fsm.Epoch) error {
	return s.conn().Renounce(ctx, fence.Epoch(e))
}

// Adopt implements agent.Sentinel.
func (s *Sentinel) Adopt(ctx context.Context, _ fsm.Epoch) error {
	pid, ok := s.pg.RunningPostmaster()
	if !ok {
		return errors.New("the server to adopt is not running any more")
	}
	_, err := s.conn().Adopt(ctx, fence.AdoptRequest{PID: pid, Dir: s.cfg.DataDir, GraceMS: 2000})
	return err
}

// Deadline implements agent.Sentinel.
func (s *Sentinel) Deadline(ctx context.Context, e fsm.Epoch, until lease.Stamp) error {
	err := s.conn().SetDeadline(ctx, fence.Deadline{Instance: s.Instance(), Epoch: fence.Epoch(e), Raw: until.Raw, Boot: until.Boot})
	if errors.Is(err, fence.ErrStale) { // it has this one already, or a later one
		return nil
	}
	return err
}

// Reset implements agent.Sentinel.
func (s *Sentinel) Reset(ctx context.Context) error {
	if st := s.Status(); st.SentinelPID != 0 {
		killSentinel(st.SentinelPID, s.cfg.Spawn.Socket)
	}
	if err := fence.KillAll(ctx, s.cfg.DataDir); err != nil {
		return err
	}
	s.dialing.Lock()
	defer s.dialing.Unlock()
	_ = s.conn().Close()
	if err := fence.Spawn(ctx, s.cfg.Spawn); err != nil {
		return err
	}
	return s.dial(ctx)
}
