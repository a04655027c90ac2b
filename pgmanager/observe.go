package pgmanager

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// Observation is what one look at the server saw. Of a server that does not answer only the first four fields are set.
type Observation struct {
	Running   bool   // a postmaster runs on the data directory
	PID       int    // its process
	Reachable bool   // it answered
	Reason    string // why it did not

	InRecovery   bool
	Timeline     fsm.Timeline // the one that Position lies on
	ReceiveLSN   fsm.LSN      // standby: received and flushed; 0 before the first stream
	ReplayLSN    fsm.LSN      // standby: replayed
	CurrentLSN   fsm.LSN      // primary: written
	Position     fsm.LSN      // end of the log held here; final only when Settled
	Settled      bool         // standby: replay has consumed all log that is here and waits for more
	ReplayPaused bool
	Receiver     *Receiver // nil when none streams

	Conninfo  string // effective primary_conninfo
	SlotName  string // effective primary_slot_name
	SyncNames string // effective synchronous_standby_names

	Senders []Sender
	Slots   []Slot

	SystemID        string
	Version         pgconf.Version
	PostmasterStart time.Time
	PendingRestart  []string // settings that wait for a restart, at most some seconds old
}

// Receiver is the walreceiver of a standby.
type Receiver struct {
	PID        int           `json:"pid"`
	Status     string        `json:"status"`
	Timeline   fsm.Timeline  `json:"timeline"`
	FlushedLSN fsm.LSN       `json:"flushed"`
	LastMsgAge time.Duration `json:"age_ns"` // since the upstream last sent anything
	SenderHost string        `json:"host"`
	SenderPort int           `json:"port"`
	SlotName   string        `json:"slot"`
}

// Sender is one walsender.
type Sender struct {
	PID          int       `json:"pid"`
	AppName      string    `json:"app"`
	ClientAddr   string    `json:"addr"`
	State        string    `json:"state"`
	SyncState    string    `json:"sync"`
	SentLSN      fsm.LSN   `json:"sent"`
	WriteLSN     fsm.LSN   `json:"write"`
	FlushLSN     fsm.LSN   `json:"flush"`
	ReplayLSN    fsm.LSN   `json:"replay"`
	ReplyTime    time.Time `json:"reply"` // the standby's clock: compare for change only
	BackendStart time.Time `json:"start"`
	SlotName     string    `json:"slot"`
}

// Slot is one replication slot.
type Slot struct {
	Name         string  `json:"name"`
	Type         string  `json:"type"`
	Database     string  `json:"database"` // of a logical one
	Plugin       string  `json:"plugin"`
	Active       bool    `json:"active"`
	ActivePID    int     `json:"pid"`
	Temporary    bool    `json:"temporary"`
	Failover     bool    `json:"failover"` // from PostgreSQL 17
	Synced       bool    `json:"synced"`   // from PostgreSQL 17
	RestartLSN   fsm.LSN `json:"restart"`
	ConfirmedLSN fsm.LSN `json:"confirmed"`
	CatalogXmin  uint32  `json:"catalog_xmin"`
	Retained     int64   `json:"retained"` // bytes of log
	WALStatus    string  `json:"wal"`      // lost as well when it was invalidated for another reason
}

//go:embed observe.sql
var observeSQL string

const (
	observeTimeout = 2 * time.Second
	pendingEvery   = 20 // the list of all settings is the dear part of a look
)

// Observe looks once at the server, over a session that it keeps. A server that is down, starts, refuses or is too slow is
// an answer, not an error.
func (m *Manager) Observe(ctx context.Context) Observation {
	m.connMu.Lock()
	defer m.connMu.Unlock()
	var o Observation
	o.PID, o.Running = m.RunningPostmaster()
	if !o.Running {
		m.dropConn()
		o.Reason = "not running"
		return o
	}
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	seen, err := m.look(ctx)
	if err != nil {
		m.dropConn()
		o.Reason = reason(err)
		return o
	}
	seen.Running, seen.PID, seen.Reachable = o.Running, o.PID, true
	return seen
}

func (m *Manager) dropConn() {
	if m.conn != nil {
		closeConn(m.conn)
		m.conn = nil
	}
}

// reason says in a few words why the server did not answer.
func reason(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("%s (%s)", pg.Message, pg.Code)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return err.Error()
}

// row is observe.sql's answer in its raw form.
type row struct {
	segment       string
	startup       string
	checkpoint    fsm.Timeline
	minRecovery   fsm.Timeline
	receiver      []byte
	senders       []byte
	slots         []byte
	pending       []string
	receive       int64
	replay        int64
	current       int64
	segmentSize   int64
	serverVersion int
}

func (m *Manager) look(ctx context.Context) (Observation, error) {
	if m.conn == nil || m.conn.IsClosed() {
		c, err := m.local(ctx)
		if err != nil {
			return Observation{}, err
		}
		m.conn = c
	}
	withPending := m.polls%pendingEvery == 0
	m.polls++
	var o Observation
	var r row
	err := m.conn.QueryRow(ctx, observeSQL, withPending).Scan(
		&o.InRecovery, &r.receive, &r.replay, &r.current, &r.segment, &r.segmentSize, &o.ReplayPaused, &r.startup,
		&r.checkpoint, &r.minRecovery, &o.SystemID, &o.PostmasterStart, &r.serverVersion,
		&o.Conninfo, &o.SlotName, &o.SyncNames, &r.receiver, &r.senders, &r.slots, &r.pending)
	if err != nil {
		return o, err
	}
	if withPending {
		m.pending = r.pending
	}
	o.PendingRestart = m.pending
	o.Version = pgconf.Version(r.serverVersion)
	o.ReceiveLSN, o.ReplayLSN, o.CurrentLSN = fsm.LSN(r.receive), fsm.LSN(r.replay), fsm.LSN(r.current)
	err = errors.Join(decode(r.receiver, &o.Receiver), decode(r.senders, &o.Senders), decode(r.slots, &o.Slots))
	if err != nil {
		return o, err
	}
	return o, m.place(&o, r)
}

func decode(b []byte, into any) error {
	if b == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}

// place works out where the log ends and on which timeline.
func (m *Manager) place(o *Observation, r row) error {
	if !o.InRecovery {
		n, err := strconv.ParseUint(r.segment, 16, 32)
		if err != nil {
			return fmt.Errorf("read the timeline: %w", err)
		}
		o.Timeline, o.Position, o.Settled = fsm.Timeline(n), o.CurrentLSN, true
		return nil
	}
	// Received starts at the beginning of a segment, before what is replayed already.
	o.Position = max(o.ReceiveLSN, o.ReplayLSN)
	o.Settled = r.startup == "RecoveryWalStream" || r.startup == "RecoveryRetrieveRetryInterval"
	newest := max(r.checkpoint, r.minRecovery)
	if o.Receiver != nil {
		newest = max(newest, o.Receiver.Timeline)
	} else {
		// The control file learns of a timeline late, the receiver has forgotten it.
		newest = max(newest, m.newestSegment(o.Position, uint64(r.segmentSize)))
	}
	h, err := m.history(newest)
	if err != nil {
		return err
	}
	o.Timeline = h.At(o.Position)
	return nil
}

// newestSegment is the highest timeline that has a log file at or before the position.
func (m *Manager) newestSegment(pos fsm.LSN, segSize uint64) fsm.Timeline {
	var newest fsm.Timeline
	entries, _ := os.ReadDir(filepath.Join(m.cfg.DataDir, "pg_wal"))
	for _, e := range entries {
		if tl, start, ok := pgconf.ParseSegmentName(e.Name(), segSize); ok && start <= pos {
			newest = max(newest, tl)
		}
	}
	return newest
}

// history reads a timeline's ancestry from the data directory; without a file nothing is known of it.
func (m *Manager) history(tl fsm.Timeline) (pgconf.History, error) {
	b, err := os.ReadFile(filepath.Join(m.cfg.DataDir, "pg_wal", pgconf.HistoryName(tl)))
	if errors.Is(err, os.ErrNotExist) {
		return pgconf.History{Timeline: tl}, nil
	}
	if err != nil {
		return pgconf.History{}, fmt.Errorf("read the timeline history: %w", err)
	}
	return pgconf.ParseHistory(tl, b)
}

// History returns the ancestry of a timeline that the data directory holds.
func (m *Manager) History(tl fsm.Timeline) (pgconf.History, error) { return m.history(tl) }
