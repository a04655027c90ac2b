package pgconf

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"matriarch/fsm"
)

// SegmentName is the name of the file that holds the byte at lsn. segSize is in bytes, a power of two from 1 MB to 1 GB.
func SegmentName(tl fsm.Timeline, lsn fsm.LSN, segSize uint64) string {
	perID := (uint64(1) << 32) / segSize
	seg := uint64(lsn) / segSize
	return fmt.Sprintf("%08X%08X%08X", uint32(tl), seg/perID, seg%perID)
}

// ParseSegmentName returns the timeline and first LSN of a log file; ok is false for other names.
func ParseSegmentName(name string, segSize uint64) (tl fsm.Timeline, start fsm.LSN, ok bool) {
	if len(name) != 24 || !ValidSegmentSize(segSize) {
		return 0, 0, false
	}
	t, err1 := strconv.ParseUint(name[:8], 16, 32)
	hi, err2 := strconv.ParseUint(name[8:16], 16, 32)
	lo, err3 := strconv.ParseUint(name[16:], 16, 32)
	perID := (uint64(1) << 32) / segSize
	if err1 != nil || err2 != nil || err3 != nil || lo >= perID {
		return 0, 0, false
	}
	tl, start = fsm.Timeline(t), fsm.LSN((hi*perID+lo)*segSize)
	return tl, start, SegmentName(tl, start, segSize) == name
}

// ValidSegmentSize reports whether PostgreSQL could have been initialised with this size in bytes.
func ValidSegmentSize(n uint64) bool { return n >= 1<<20 && n <= 1<<30 && n&(n-1) == 0 }

// SegmentUsed reports whether a log file whose first bytes are head has been written under its present name; a recycled
// one still carries the address of its former life.
func SegmentUsed(head []byte, start fsm.LSN) bool {
	return len(head) >= 16 && binary.NativeEndian.Uint64(head[8:16]) == uint64(start)
}
