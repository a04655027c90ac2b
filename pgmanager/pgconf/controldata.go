package pgconf

import (
	"fmt"
	"strconv"
	"strings"

	"matriarch/fsm"
)

// ControlData is what pg_controldata says about a data directory.
type ControlData struct {
	SystemID            string
	State               string // for instance "shut down", "in production", "in archive recovery"
	Checkpoint          fsm.LSN
	Redo                fsm.LSN
	Timeline            fsm.Timeline // of the last checkpoint: old just after a promotion
	PrevTimeline        fsm.Timeline
	MinRecoveryEnd      fsm.LSN
	MinRecoveryTimeline fsm.Timeline
	SegmentSize         uint64 // bytes
	WALLevel            string
	WALLogHints         bool
	Checksums           bool
	MaxConnections      int
	MaxWorkerProcesses  int
	MaxWALSenders       int
	MaxPreparedXacts    int
	MaxLocksPerXact     int
}

// Clean reports whether the server was shut down in order, as primary or as standby.
func (c ControlData) Clean() bool {
	return c.State == "shut down" || c.State == "shut down in recovery"
}

// LastTimeline is the newest timeline that the control file knows to be in use.
func (c ControlData) LastTimeline() fsm.Timeline { return max(c.Timeline, c.MinRecoveryTimeline) }

// ParseControlData reads the output of pg_controldata under LC_ALL=C.
func ParseControlData(out []byte) (ControlData, error) {
	r := controlReader{fields: map[string]string{}}
	for line := range strings.SplitSeq(string(out), "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok {
			r.fields[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	c := ControlData{
		SystemID:            r.text("Database system identifier"),
		State:               r.text("Database cluster state"),
		Checkpoint:          r.lsn("Latest checkpoint location"),
		Redo:                r.lsn("Latest checkpoint's REDO location"),
		Timeline:            fsm.Timeline(r.number("Latest checkpoint's TimeLineID")),
		PrevTimeline:        fsm.Timeline(r.number("Latest checkpoint's PrevTimeLineID")),
		MinRecoveryEnd:      r.lsn("Minimum recovery ending location"),
		MinRecoveryTimeline: fsm.Timeline(r.number("Min recovery ending loc's timeline")),
		SegmentSize:         r.number("Bytes per WAL segment"),
		WALLevel:            r.text("wal_level setting"),
		WALLogHints:         r.text("wal_log_hints setting") == "on",
		Checksums:           r.number("Data page checksum version") != 0,
		MaxConnections:      int(r.number("max_connections setting")),
		MaxWorkerProcesses:  int(r.number("max_worker_processes setting")),
		MaxWALSenders:       int(r.number("max_wal_senders setting")),
		MaxPreparedXacts:    int(r.number("max_prepared_xacts setting")),
		MaxLocksPerXact:     int(r.number("max_locks_per_xact setting")),
	}
	if r.err == nil && !ValidSegmentSize(c.SegmentSize) {
		r.err = fmt.Errorf("parse pg_controldata: segment size %d", c.SegmentSize)
	}
	if r.err != nil {
		return ControlData{}, r.err
	}
	return c, nil
}

// controlReader keeps the first error of a series of lookups.
type controlReader struct {
	fields map[string]string
	err    error
}

func (r *controlReader) text(key string) string {
	v := r.fields[key]
	if v == "" && r.err == nil {
		r.err = fmt.Errorf("parse pg_controldata: no line %q, or nothing on it", key)
	}
	return v
}

func (r *controlReader) number(key string) uint64 {
	v := r.text(key)
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("parse pg_controldata: %s: %q is no number", key, v)
	}
	return n
}

func (r *controlReader) lsn(key string) fsm.LSN {
	v := r.text(key)
	l, err := fsm.ParseLSN(v)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("parse pg_controldata: %s: %w", key, err)
	}
	return l
}
