package decide

import (
	"fmt"
	"strings"
	"time"
)

// Signs are what a node finds when it looks at its PostgreSQL as a stranger would, through new sessions, and at its disks.
type Signs struct {
	Running bool   // a postmaster of the sentinel's lives
	Primary bool   // and it is writable
	Remains bool   // the postmaster is gone, and others of its processes are not, though killed
	Stopped bool   // the postmaster does not run, by the kernel's word: SIGSTOP, or a debugger
	Hangs   bool   // a trial has had long enough and did not end: Trial tells how far it is
	Trial   Trial  // the newest that ended; the zero Trial succeeded
	Silent  bool   // the file systems do not answer
	Disks   []Disk // those of the data directory and of its log
}

// Trial is one new session, which on a primary writes a record through the log and makes it durable here. No standby is waited for.
type Trial struct {
	Failed    bool
	Connected bool   // the session was there
	Code      string // SQLSTATE of what PostgreSQL said, if it said something
	Errno     string // name of the system's error, if that was it: ENOSPC, EIO, ECONNREFUSED
	Text      string
}

// Disk is one file system.
type Disk struct {
	Path     string
	Free     int64  // bytes for PostgreSQL's user
	Inodes   int64  // files that may still be made; -1: no limit
	ReadOnly bool   // the kernel writes nothing to it
	Errno    string // of the look at it
}

// Sickness is what ails a PostgreSQL; the zero Sickness is none.
type Sickness struct {
	Reason string // one of SickReasons
	Text   string // the same in words, with the remedy and without numbers that change
}

// The reasons, as metrics and reports name them.
const (
	SickDiskHangs   = "disk_hangs"
	SickReadOnly    = "read_only"
	SickStopped     = "stopped"
	SickNoSessions  = "hangs"
	SickLogHangs    = "wal_hangs"
	SickNoSpace     = "no_space"
	SickIO          = "io_error"
	SickOutOfMemory = "out_of_memory"
	SickRefuses     = "refuses"
	SickDiskFull    = "disk_full"
)

// SickReasons lists them all.
var SickReasons = []string{SickDiskHangs, SickReadOnly, SickStopped, SickNoSessions, SickLogHangs, SickNoSpace, SickIO, SickOutOfMemory, SickRefuses, SickDiskFull}

// StillWrites reports whether a PostgreSQL that is sick for this reason still takes writes: then it is handed over as a switchover does it.
func StillWrites(reason string) bool { return reason == SickDiskFull }

const (
	// DiskLow is how little room counts as none: two segments of the log, as PostgreSQL ends when it finds no room for one.
	DiskLow = 32 << 20
	// diskEased is how much there must be before a disk that was full is not full any more.
	diskEased = 2 * DiskLow
)

// sign is one row of the table of symptoms.
type sign struct {
	reason string
	holds  func(Signs) bool
	text   func(Signs) string
}

func says(text string) func(Signs) string { return func(Signs) string { return text } }

// signTable is ordered: the first row that holds names the sickness. Disks come first, as they are the cause of much else. What is
// not in it is no sickness: another host would not be better at a wrong password.
var signTable = []sign{
	{SickDiskHangs, func(s Signs) bool { return s.Silent }, says("the file system of its data directory does not answer: look at the disk and at the kernel's log")},
	{SickDiskHangs, func(s Signs) bool { return s.Remains }, says("processes of it do not end although they were killed: they wait for a disk that hangs")},
	{SickReadOnly, anyDisk(readOnly), func(s Signs) string {
		return fmt.Sprintf("the file system of %s is read-only: look at the kernel's log, repair it and mount it again", s.path(readOnly))
	}},
	{SickIO, anyDisk(failing), func(s Signs) string {
		return fmt.Sprintf("the file system of %s answers with input/output errors: look at the disk and at the kernel's log", s.path(failing))
	}},
	{
		SickStopped, func(s Signs) bool { return s.Hangs && s.Stopped },
		says("its postmaster is stopped (SIGSTOP, or a debugger) and takes no new session: SIGCONT lets it go on"),
	},
	{
		SickNoSessions, func(s Signs) bool { return s.Hangs && (!s.Trial.Connected || !s.Primary) || s.Trial.Errno == "EAGAIN" },
		says("new sessions get no answer: look for a postmaster that hangs, a disk that hangs, or a lock on pg_authid or pg_database"),
	},
	{SickLogHangs, func(s Signs) bool { return s.Hangs }, says("a write through its log does not end: the disk of pg_wal hangs or is overloaded")},
	{SickNoSpace, func(s Signs) bool { return s.failed("53100", "ENOSPC", "No space left on device") }, says("it finds no space to write: free some on the disks of the data directory and of pg_wal")},
	{SickReadOnly, func(s Signs) bool { return s.failed("", "EROFS", "Read-only file system") }, says("it writes to a read-only file system: look at the kernel's log, repair it and mount it again")},
	{SickIO, func(s Signs) bool { return s.failed("58030", "EIO", "Input/output error") }, says("reading or writing its files fails with input/output errors: look at the disk and at the kernel's log")},
	{SickOutOfMemory, func(s Signs) bool { return s.failed("53200", "ENOMEM", "could not fork") }, says("new sessions fail for want of memory or processes: look at the kernel's log for the OOM killer and at what else runs on the host")},
	{SickRefuses, func(s Signs) bool {
		return s.Primary && (s.failed("57P03", "ECONNREFUSED", "") || s.Trial.Errno == "ENOENT")
	}, says("it refuses sessions on its Unix socket: its own log tells why")},
}

func readOnly(d Disk) bool { return d.ReadOnly || d.Errno == "EROFS" }
func failing(d Disk) bool  { return d.Errno == "EIO" }

func anyDisk(is func(Disk) bool) func(Signs) bool {
	return func(s Signs) bool { return s.path(is) != "" }
}

// failed: the trial ended with this code of PostgreSQL's or the system's, or these words.
func (s Signs) failed(code, errno, words string) bool {
	t := s.Trial
	return t.Failed && !s.Hangs && (code != "" && t.Code == code || t.Errno == errno || words != "" && strings.Contains(t.Text, words))
}

// path is that of the first disk for which something holds.
func (s Signs) path(is func(Disk) bool) string {
	for _, d := range s.Disks {
		if is(d) {
			return d.Path
		}
	}
	return ""
}

// Diagnose names what ails a PostgreSQL. was is what it was last said to ail from: a full disk needs more than a little room to be well.
func Diagnose(s Signs, was string) Sickness {
	if !s.Running || s.Remains {
		s.Trial, s.Hangs = Trial{}, false // there is nobody to ask: others see to that
	}
	for _, row := range signTable {
		if row.holds(s) {
			return Sickness{row.reason, row.text(s)}
		}
	}
	low := int64(DiskLow)
	if was == SickDiskFull || was == SickNoSpace {
		low = diskEased
	}
	full := func(d Disk) bool { return d.Errno == "" && (d.Free < low || d.Inodes == 0) }
	if p := s.path(full); p != "" {
		return Sickness{SickDiskFull, fmt.Sprintf("the disk of %s is full, or has less than %d MB left: make room, PostgreSQL ends when it finds none for its log", p, DiskLow>>20)}
	}
	return Sickness{}
}

// CannotTell says why a trial that failed says nothing of PostgreSQL's health, or "".
func CannotTell(t Trial) string {
	switch {
	case !t.Failed:
		return ""
	case t.Code == "53300":
		return "all connections are in use, those reserved for superusers too: that is no sickness, but raise max_connections or superuser_reserved_connections, or end some"
	}
	return t.Text
}

// Course follows a PostgreSQL's health over time, so that one bad moment is no sickness and one good moment no cure.
type Course struct {
	Now   Sickness // what is told
	since time.Time
	looks int
}

// Look takes in what was found. began is when the look at it began: what hangs was ill from its beginning. Two looks at least,
// and patience in time, must agree before what is told changes between sick and well.
func (c Course) Look(found Sickness, began, now time.Time, patience time.Duration) Course {
	if (found.Reason == "") == (c.Now.Reason == "") {
		c.since, c.looks = time.Time{}, 0
		if found.Reason != "" {
			c.Now = found
		}
		return c
	}
	if c.looks++; c.since.IsZero() {
		if c.since = began; found.Reason == "" {
			c.since = now // what ended well after a long time was not well before
		}
	}
	if c.looks >= 2 && now.Sub(c.since) >= patience {
		c = Course{Now: found}
	}
	return c
}

// Turning reports whether looks disagree with what is told: then the next should come soon.
func (c Course) Turning() bool { return c.looks > 0 }
