package pgconf

import (
	"fmt"
	"regexp"
	"strconv"
)

// Oldest and newest major versions that Matriarch runs.
const (
	OldestMajor = 14
	NewestMajor = 18
)

// Version is PostgreSQL's server_version_num: 150018 is 15.18.
type Version int

// Major returns the major version, 15 for 15.18.
func (v Version) Major() int { return int(v) / 10000 }

// String renders the version as people read it.
func (v Version) String() string { return fmt.Sprintf("%d.%d", int(v)/10000, int(v)%10000) }

// Supported reports whether Matriarch runs this version.
func (v Version) Supported() bool { return v.Major() >= OldestMajor && v.Major() <= NewestMajor }

var versionPattern = regexp.MustCompile(`^(?:[a-z_]+ \(PostgreSQL\) )?(\d{1,3})(?:\.(\d{1,4}))?((?:devel|alpha|beta|rc)\d*)?(?:\s|$)`)

// ParseVersion reads "15.18", the content of PG_VERSION, or the answer of `postgres --version`. A beta counts as .0.
func ParseVersion(s string) (Version, error) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("parse PostgreSQL version %q: want for instance 15.18", s)
	}
	major, _ := strconv.Atoi(m[1])
	minor := 0
	if m[2] != "" {
		minor, _ = strconv.Atoi(m[2])
	}
	return Version(major*10000 + minor), nil
}
