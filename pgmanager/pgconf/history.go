package pgconf

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"matriarch/fsm"
)

// HistoryEntry says where a timeline was left.
type HistoryEntry struct {
	Timeline fsm.Timeline
	End      fsm.LSN // first byte that belongs to the next timeline
	Reason   string
}

// History is the ancestry of a timeline, oldest first. Timeline 1 has no entries and no file.
type History struct {
	Timeline fsm.Timeline
	Entries  []HistoryEntry
}

// HistoryName is the name of the file that holds a timeline's ancestry.
func HistoryName(tl fsm.Timeline) string { return fmt.Sprintf("%08X.history", uint32(tl)) }

// ParseHistoryName reads what HistoryName wrote.
func ParseHistoryName(name string) (fsm.Timeline, bool) {
	hex, ok := strings.CutSuffix(name, ".history")
	n, err := strconv.ParseUint(hex, 16, 32)
	if !ok || len(hex) != 8 || err != nil || n == 0 || HistoryName(fsm.Timeline(n)) != name {
		return 0, false
	}
	return fsm.Timeline(n), true
}

// ParseHistory reads the history file of timeline tl.
func ParseHistory(tl fsm.Timeline, content []byte) (History, error) {
	h := History{Timeline: tl}
	for line := range strings.SplitSeq(string(content), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.SplitN(line, "\t", 3)
		if len(f) < 2 {
			return History{}, fmt.Errorf("parse history of timeline %d: line %q: want timeline, tab, LSN", tl, line)
		}
		n, err := strconv.ParseUint(f[0], 10, 32)
		lsn, err2 := fsm.ParseLSN(f[1])
		if err != nil || err2 != nil || n == 0 || lsn == 0 {
			return History{}, fmt.Errorf("parse history of timeline %d: line %q: want timeline, tab, LSN", tl, line)
		}
		e := HistoryEntry{Timeline: fsm.Timeline(n), End: lsn}
		if len(f) == 3 {
			e.Reason = f[2]
		}
		if p, ok := h.Parent(); (ok && (e.Timeline <= p.Timeline || e.End < p.End)) || e.Timeline >= tl {
			return History{}, fmt.Errorf("parse history of timeline %d: line %q is out of order", tl, line)
		}
		h.Entries = append(h.Entries, e)
	}
	return h, nil
}

// Parent returns the entry of the timeline that h.Timeline forked from.
func (h History) Parent() (HistoryEntry, bool) {
	if len(h.Entries) == 0 {
		return HistoryEntry{}, false
	}
	return h.Entries[len(h.Entries)-1], true
}

// At returns the timeline whose log ends exactly at lsn: nobody who stands at or before a fork owns anything of the
// timeline made there, whatever his receiver was told.
func (h History) At(lsn fsm.LSN) fsm.Timeline {
	for _, e := range h.Entries {
		if lsn <= e.End {
			return e.Timeline
		}
	}
	return h.Timeline
}

// Diverged reports whether a server at (tl, lsn) holds log that is not part of h: it cannot follow h without a rewind.
func Diverged(h History, tl fsm.Timeline, lsn fsm.LSN) bool {
	if tl == h.Timeline {
		return false
	}
	for _, e := range h.Entries {
		if e.Timeline == tl {
			return lsn > e.End
		}
	}
	return true
}

// Fork returns the last point that two histories share; timeline 0 when there is none. It goes by numbers only: who made
// each timeline is for the caller to check.
func Fork(a, b History) (fsm.Timeline, fsm.LSN) {
	ea := append(append([]HistoryEntry{}, a.Entries...), HistoryEntry{Timeline: a.Timeline, End: math.MaxUint64})
	eb := append(append([]HistoryEntry{}, b.Entries...), HistoryEntry{Timeline: b.Timeline, End: math.MaxUint64})
	var tl fsm.Timeline
	var end fsm.LSN
	for i := 0; i < min(len(ea), len(eb)) && ea[i].Timeline == eb[i].Timeline; i++ {
		tl, end = ea[i].Timeline, min(ea[i].End, eb[i].End)
		if ea[i].End != eb[i].End {
			break
		}
	}
	return tl, end
}
