package doctor

import "fmt"

// Level is how a finding is to be taken.
type Level string

// The levels.
const (
	OK   Level = "ok"
	Warn Level = "warn" // it works, or may work, but not as well or not for ever
	Fail Level = "fail" // the node would not work, or not be safe
)

// Finding is one line of the answer.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	Says  string `json:"says"`
	Do    string `json:"do,omitempty"` // what to do about it; never empty unless ok
}

// Check is one row of the table.
type Check struct {
	Name  string
	About string
	look  func(Facts, *report)
}

// Checks is the table, in the order of the answer.
func Checks() []Check {
	return []Check{
		{"configuration", "the file can be read and is valid", configuration},
		{"postgresql", "version, programs that belong together, data directory of the same version", postgresql},
		{"citus", "library and control file for that server, loaded first", citus},
		{"units", "nobody else starts PostgreSQL", units},
		{"clock", "synchronised, steady, near the other nodes' clocks", clock},
		{"clocksource", "cheap and steady", clocksource},
		{"disk-space", "room and inodes", diskSpace},
		{"disk-fsync", "how long a write takes to be on disk", diskFsync},
		{"disk-shared", "the replicated log has a disk of its own", diskShared},
		{"ports", "free, or in use by this node", ports},
		{"reach", "the other nodes' ports can be reached", reach},
		{"kernel", "memory settings that suit a database", kernel},
		{"limits", "open files and locked memory", limits},
		{"names", "names are found, and soon", names},
		{"watchdog", "the device fits the setting", watchdog},
		{"rights", "who runs what, who may read what", rights},
		{"certificates", "not expired, nor soon", certificates},
	}
}

// Examine runs every check. Each gives at least one finding.
func Examine(f Facts) []Finding {
	var out []Finding
	for _, c := range Checks() {
		r := report{check: c.Name}
		c.look(f, &r)
		out = append(out, r.found...)
	}
	return out
}

// Worst is the greatest level among the findings.
func Worst(of []Finding) Level {
	worst := OK
	for _, f := range of {
		if f.Level == Fail || (f.Level == Warn && worst == OK) {
			worst = f.Level
		}
	}
	return worst
}

// report collects a check's findings.
type report struct {
	check string
	found []Finding
}

func (r *report) ok(format string, args ...any) {
	r.found = append(r.found, Finding{Check: r.check, Level: OK, Says: fmt.Sprintf(format, args...)})
}

func (r *report) warn(do, format string, args ...any) { r.add(Warn, do, format, args...) }
func (r *report) fail(do, format string, args ...any) { r.add(Fail, do, format, args...) }

func (r *report) add(l Level, do, format string, args ...any) {
	r.found = append(r.found, Finding{Check: r.check, Level: l, Says: fmt.Sprintf(format, args...), Do: do})
}

// quiet says ok when nothing was found.
func (r *report) quiet(format string, args ...any) {
	if len(r.found) == 0 {
		r.ok(format, args...)
	}
}
