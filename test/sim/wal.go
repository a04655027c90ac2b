package sim

import (
	"maps"
	"slices"

	"matriarch/fsm"
)

// record is one commit in the log. Equal positions with different ids are different histories.
type record struct {
	id    uint64
	tl    fsm.Timeline
	value uint64 // 0: the server's own
}

// fork is where a timeline was left, as a number of records.
type fork struct {
	tl  fsm.Timeline
	end int
}

// dataDir is what is on disk. Everything in it is flushed.
type dataDir struct {
	systemID string
	wal      []record
	tl       fsm.Timeline // of the last record
	history  []fork       // of tl, oldest first
	known    fsm.Timeline // highest number of a timeline whose history file is here
	slots    map[fsm.NodeID]bool
	ended    int // records at a stop in good order as primary, until the next start; 0: any other end
}

func (d *dataDir) clone() *dataDir {
	c := *d
	c.wal, c.history, c.slots = slices.Clone(d.wal), slices.Clone(d.history), maps.Clone(d.slots)
	return &c
}

const (
	lsnBase = 1000
	lsnStep = 10
)

func lsn(n int) fsm.LSN { return fsm.LSN(lsnBase + lsnStep*n) }

// append adds records whose timelines may be newer than ours, with their history.
func (d *dataDir) append(recs []record, history []fork) {
	for _, r := range recs {
		if r.tl != d.tl {
			d.tl, d.known = r.tl, max(d.known, r.tl)
			d.history = nil
			for _, f := range history {
				if f.tl == r.tl {
					break
				}
				d.history = append(d.history, f)
			}
		}
		d.wal = append(d.wal, r)
	}
}

// serves reports whether a standby that has n records, the last on timeline tl, may stream from here. PostgreSQL compares
// numbers; it does not know whose they are.
func (d *dataDir) serves(tl fsm.Timeline, n int) bool {
	if tl == d.tl {
		return n <= len(d.wal)
	}
	for _, f := range d.history {
		if f.tl == tl {
			return n <= f.end
		}
	}
	return false
}

// rewindable reports whether pg_rewind sees anything to do: it compares histories by numbers and positions.
func (d *dataDir) sameByNumbers(o *dataDir) bool {
	return d.tl == o.tl && slices.Equal(d.history, o.history)
}
