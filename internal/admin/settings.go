package admin

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// Setting is one key of the cluster's settings, as people write it.
type Setting struct {
	Key  string
	Help string
	Get  func(fsm.Settings) string
	set  func(*fsm.Settings, string) error
}

// ClusterSettings lists all settings in order.
func ClusterSettings() []Setting {
	out := []Setting{
		duration("ttl", "length of a lease; a running lease keeps its own", fsm.MinTTL, time.Minute, func(s *fsm.Settings) *time.Duration { return &s.TTL }),
		duration("dead_voter_after", "a voter unreachable for this long is replaced", 5*time.Second, 24*time.Hour, func(s *fsm.Settings) *time.Duration { return &s.DeadVoterAfter }),
		duration("degrade_after", "a synchronous standby missing this long leaves the set", 500*time.Millisecond, time.Hour, func(s *fsm.Settings) *time.Duration { return &s.DegradeAfter }),
		{
			"maximum_lag", "bytes that a candidate of an asynchronous group may lack",
			func(s fsm.Settings) string { return FormatBytes(s.MaximumLag) },
			func(s *fsm.Settings, v string) (err error) { s.MaximumLag, err = ParseBytes(v); return err },
		},
		duration("restart_wait", "time for a crashed primary of an asynchronous group to come back", 0, time.Hour, func(s *fsm.Settings) *time.Duration { return &s.RestartWait }),
		boolean("leader_avoid", "keep Raft leadership off hosts of primaries", func(s *fsm.Settings) *bool { return &s.LeaderAvoid }),
		boolean("citus", "create the extension and keep pg_dist_node right", func(s *fsm.Settings) *bool { return &s.Citus }),
		{
			"databases", "databases that every group has, separated by commas",
			func(s fsm.Settings) string { return strings.Join(s.Databases, ",") },
			func(s *fsm.Settings, v string) (err error) { s.Databases, err = parseDatabases(v); return err },
		},
		defaultMode(),
		zonePreference(),
		boolean("check_timeline", "only who has reached the newest timeline may become primary", func(s *fsm.Settings) *bool { return &s.CheckTimeline }),
		memberSlotsTTL(),
		{
			"rewind_failure", "after a rewind that failed: clone, or stop and wait for 'matriarch reinit'",
			func(s fsm.Settings) string { return cmp.Or(s.RewindFailure, decide.RewindClone) },
			func(s *fsm.Settings, v string) error {
				if v != decide.RewindClone && v != decide.RewindStop {
					return fmt.Errorf("%q must be clone or stop", v)
				}
				s.RewindFailure = strings.TrimSuffix(v, decide.RewindClone)
				return nil
			},
		},
		duration("maximum_clock_skew", "how far the clock of a joining host may be off", time.Second, time.Hour, func(s *fsm.Settings) *time.Duration { return &s.MaximumClockSkew }),
		orDefault(duration("sick_after", "PostgreSQL counts as sick, or well again, when it has looked so this long", time.Second, 10*time.Minute, func(s *fsm.Settings) *time.Duration { return &s.SickAfter }), fsm.Settings.Patience),
		orDefault(duration("sick_cooldown", "a group leaves a sick primary once in this time, never for a node sick in it", time.Second, 24*time.Hour, func(s *fsm.Settings) *time.Duration { return &s.SickCooldown }), fsm.Settings.Cooldown),
		{
			"postgresql_tls", "how the nodes' PostgreSQL prove themselves to each other: on (certificates only), both (certificates, passwords still accepted) or off",
			func(s fsm.Settings) string { return string(s.PostgresTLS.Or()) },
			func(s *fsm.Settings, v string) error {
				if v == "" || !fsm.LinkSecurity(v).Known() {
					return fmt.Errorf("%q: use on, both or off", v)
				}
				s.PostgresTLS = fsm.LinkSecurity(v)
				if s.PostgresTLS == fsm.LinksOff { // what versions without this setting have
					s.PostgresTLS = ""
				}
				return nil
			},
		},
	}
	return append(out, citusSettings()...)
}

func citusSettings() []Setting {
	return []Setting{
		boolean("citus_secondaries", "register standbys in pg_dist_node as secondaries", func(s *fsm.Settings) *bool { return &s.CitusSecondaries }),
		{
			"citus_secondary_lag", "bytes that a registered standby may have left to replay",
			func(s fsm.Settings) string { return FormatBytes(s.CitusSecondaryLag) },
			func(s *fsm.Settings, v string) (err error) { s.CitusSecondaryLag, err = ParseBytes(v); return err },
		},
		{
			"citus_pause", "what waits during a switchover: full (everything, no errors), group (writes to its shards) or off",
			func(s fsm.Settings) string { return s.CitusPause },
			func(s *fsm.Settings, v string) error {
				if v != "full" && v != "group" && v != "off" {
					return fmt.Errorf("%q: use full, group or off", v)
				}
				s.CitusPause = v
				return nil
			},
		},
		duration("pause_lock_timeout", "how long a switchover waits for transactions in its way", 500*time.Millisecond, time.Minute, func(s *fsm.Settings) *time.Duration { return &s.PauseLockTimeout }),
		{
			"citus_pool_port", "port of a connection pool on every node, for Citus' own links; 0: none",
			func(s fsm.Settings) string { return strconv.Itoa(s.CitusPoolPort) },
			func(s *fsm.Settings, v string) error {
				n, err := strconv.ParseUint(v, 10, 16)
				if err != nil {
					return fmt.Errorf("%q is no port: write 1 to 65535, or 0 for none", v)
				}
				s.CitusPoolPort = int(n)
				return nil
			},
		},
	}
}

// SetSetting applies one KEY=VALUE. After an error nothing has changed.
func SetSetting(s *fsm.Settings, assignment string) error {
	key, value, ok := strings.Cut(assignment, "=")
	if !ok {
		return fmt.Errorf("%q: write KEY=VALUE, for instance ttl=6s", assignment)
	}
	all := ClusterSettings()
	i := slices.IndexFunc(all, func(x Setting) bool { return x.Key == strings.TrimSpace(key) })
	if i < 0 {
		keys := make([]string, 0, len(all))
		for _, x := range all {
			keys = append(keys, x.Key)
		}
		return fmt.Errorf("unknown setting %q: there are %s", key, strings.Join(keys, ", "))
	}
	next := *s
	if err := all[i].set(&next, strings.TrimSpace(value)); err != nil {
		return fmt.Errorf("%s: %w", all[i].Key, err)
	}
	*s = next
	return nil
}

func defaultMode() Setting {
	return Setting{
		"default_mode", "replication mode of new groups: quorum, on or off",
		func(s fsm.Settings) string { return string(s.DefaultMode) },
		func(s *fsm.Settings, v string) error {
			if !fsm.Mode(v).Known() {
				return fmt.Errorf("%q must be quorum, on or off", v)
			}
			s.DefaultMode = fsm.Mode(v)
			return nil
		},
	}
}

func memberSlotsTTL() Setting {
	var ttl time.Duration
	plain := duration("member_slots_ttl", "a member not heard of for this long loses its replication slot; 0s: never", 0, 30*24*time.Hour, func(*fsm.Settings) *time.Duration { return &ttl })
	plain.Get = func(s fsm.Settings) string { return s.SlotsTTL().String() }
	parse := plain.set
	plain.set = func(s *fsm.Settings, v string) error {
		err := parse(s, v)
		switch {
		case err != nil:
		case ttl == 0:
			s.MemberSlotsTTL = -1
		case ttl == fsm.DefaultSlotsTTL:
			s.MemberSlotsTTL = 0
		default:
			s.MemberSlotsTTL = ttl
		}
		return err
	}
	return plain
}

func zonePreference() Setting {
	return Setting{
		"failover_zone_preference", "among equal candidates, prefer the old primary's zone: same, other or none",
		func(s fsm.Settings) string { return cmp.Or(s.FailoverZone, "none") },
		func(s *fsm.Settings, v string) error {
			if v != decide.ZoneSame && v != decide.ZoneOther && v != "none" {
				return fmt.Errorf("%q must be same, other or none", v)
			}
			s.FailoverZone = strings.TrimSuffix(v, "none")
			return nil
		},
	}
}

func duration(key, help string, least, most time.Duration, at func(*fsm.Settings) *time.Duration) Setting {
	return Setting{
		key, help,
		func(s fsm.Settings) string { return at(&s).String() },
		func(s *fsm.Settings, v string) error {
			d, err := time.ParseDuration(v)
			if err != nil {
				return fmt.Errorf("%q is no duration: write 5s, 500ms or 1m", v)
			}
			if d < least || d > most {
				return fmt.Errorf("%s must be %s to %s", d, least, most)
			}
			*at(s) = d
			return nil
		},
	}
}

// orDefault shows what holds where the state has nothing.
func orDefault(s Setting, effective func(fsm.Settings) time.Duration) Setting {
	s.Get = func(x fsm.Settings) string { return effective(x).String() }
	return s
}

func boolean(key, help string, at func(*fsm.Settings) *bool) Setting {
	return Setting{
		key, help,
		func(s fsm.Settings) string { return strconv.FormatBool(*at(&s)) },
		func(s *fsm.Settings, v string) error {
			b, err := strconv.ParseBool(v)
			if err != nil {
				return fmt.Errorf("%q must be true or false", v)
			}
			*at(s) = b
			return nil
		},
	}
}

var databaseName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

func parseDatabases(v string) ([]string, error) {
	var out []string
	for name := range strings.SplitSeq(v, ",") {
		name = strings.TrimSpace(name)
		switch {
		case !databaseName.MatchString(name):
			return nil, fmt.Errorf("%q must be 1 to 63 of a-z, 0-9 and underscore, not beginning with a digit", name)
		case name == "postgres" || name == "template0" || name == "template1":
			return nil, fmt.Errorf("%s is PostgreSQL's own: choose another", name)
		case slices.Contains(out, name):
			return nil, fmt.Errorf("%s stands there twice", name)
		}
		out = append(out, name)
	}
	return out, nil
}

var byteUnits = []struct {
	name string
	size int64
}{{"TB", 1 << 40}, {"GB", 1 << 30}, {"MB", 1 << 20}, {"kB", 1 << 10}, {"B", 1}, {"", 1}}

// ParseBytes reads a size with PostgreSQL's units: 16MB, 100kB, or plain bytes.
func ParseBytes(v string) (int64, error) {
	for _, u := range byteUnits {
		digits, ok := strings.CutSuffix(v, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > (1<<62)/u.size {
			break
		}
		return n * u.size, nil
	}
	return 0, fmt.Errorf("%q is no size: write bytes, or 100kB, 16MB, 1GB", v)
}

// FormatBytes writes a size so that ParseBytes reads the same.
func FormatBytes(n int64) string {
	for _, u := range byteUnits {
		if u.size > 1 && n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
