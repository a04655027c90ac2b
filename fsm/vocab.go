package fsm

import (
	"fmt"
	"strconv"
	"strings"
)

// NodeID is the random UUID a host draws when it bootstraps or joins. It never changes and is never reused.
type NodeID string

// GroupID numbers a PostgreSQL replication set: 0 is the coordinator, 1, 2, 3 ... are workers.
type GroupID int

// Epoch numbers the leases of one group. It only rises: a recovered control plane gets a higher Inc, each Grant a higher N.
// The zero Epoch stands before every Grant.
type Epoch struct {
	Inc uint64 `json:"inc"` // incarnation of the control plane
	N   uint64 `json:"n"`   // counter within the group
}

// Less reports whether e is older than o.
func (e Epoch) Less(o Epoch) bool { return e.Inc < o.Inc || (e.Inc == o.Inc && e.N < o.N) }

// IsZero reports whether e stands before every Grant.
func (e Epoch) IsZero() bool { return e == Epoch{} }

// String renders the epoch as people read it: incarnation.counter.
func (e Epoch) String() string { return fmt.Sprintf("%d.%d", e.Inc, e.N) }

// Suffix renders the epoch for names that allow letters, digits and underscores only.
func (e Epoch) Suffix() string { return fmt.Sprintf("e%d_%d", e.Inc, e.N) }

// ParseEpoch reads what String wrote.
func ParseEpoch(s string) (Epoch, error) {
	inc, n, ok := strings.Cut(s, ".")
	i, err1 := strconv.ParseUint(inc, 10, 64)
	c, err2 := strconv.ParseUint(n, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return Epoch{}, fmt.Errorf("parse epoch %q: want incarnation.counter, for instance 1.17", s)
	}
	return Epoch{Inc: i, N: c}, nil
}

// Timeline is PostgreSQL's timeline number; 0 means unknown.
type Timeline uint32

// LSN is a position in PostgreSQL's write-ahead log, in bytes; 0 means unknown.
type LSN uint64

// String renders the LSN as PostgreSQL does: two hexadecimal halves.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// ParseLSN reads PostgreSQL's rendering; the empty string is 0.
func ParseLSN(s string) (LSN, error) {
	if s == "" {
		return 0, nil
	}
	hi, lo, ok := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("parse LSN %q: want two hexadecimal halves, for instance 0/3000060", s)
	}
	return LSN(h<<32 | l), nil
}

// SameBoot reports whether two sentinel instances were drawn on one host since its last boot. An instance is BOOT-NUMBER; one
// without a boot is like no other.
func SameBoot(a, b string) bool {
	boot, _, ok := strings.Cut(a, "-")
	other, _, also := strings.Cut(b, "-")
	return ok && also && boot == other
}
