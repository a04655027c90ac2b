package pgconf

import (
	"bytes"
	"slices"
	"strings"
)

// includeMark ends the line that Matriarch appends to postgresql.conf, so that it is recognised in a copy from another
// host, where the path differs.
const includeMark = "# managed by matriarch, keep this line last"

// Setting is one line of a configuration file.
type Setting struct{ Name, Value string }

// splitSetting reads one line of a configuration file; ok is false for blank lines, comments and rubbish.
func splitSetting(line string) (s Setting, ok bool) {
	line = strings.TrimSpace(line)
	end := strings.IndexFunc(line, func(r rune) bool { return r == '=' || r == ' ' || r == '\t' })
	if line == "" || line[0] == '#' || end <= 0 {
		return Setting{}, false
	}
	rest := strings.TrimLeft(line[end:], " \t")
	rest = strings.TrimLeft(strings.TrimPrefix(rest, "="), " \t")
	value, _, err := unquoteSetting(rest)
	if err != nil {
		return Setting{}, false
	}
	return Setting{Name: strings.ToLower(line[:end]), Value: value}, true
}

// ParseFile returns the settings of a configuration file in their order; for equal names PostgreSQL takes the last. Lines
// it does not understand are left out.
func ParseFile(content []byte) []Setting {
	var out []Setting
	for line := range strings.SplitSeq(string(content), "\n") {
		if s, ok := splitSetting(line); ok {
			out = append(out, s)
		}
	}
	return out
}

// StripManaged removes the lines of postgresql.auto.conf that would beat a managed setting, and names them.
func StripManaged(content []byte) (rest []byte, removed []string) {
	var out bytes.Buffer
	for line := range strings.SplitAfterSeq(string(content), "\n") {
		if s, ok := splitSetting(line); ok && beatsUs(s.Name) {
			removed = append(removed, s.Name)
			continue
		}
		out.WriteString(line)
	}
	return out.Bytes(), removed
}

// EnsureInclude returns postgresql.conf with exactly one managed include line, naming path, behind every other line; it
// has to be last since later settings win. changed is false when content is so already.
func EnsureInclude(content []byte, path string) (out []byte, changed bool) {
	want := "include " + QuoteSetting(path) + " " + includeMark
	lines := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasSuffix(strings.TrimSpace(l), includeMark) })
	if len(lines) == 1 && lines[0] == "" {
		lines = nil
	}
	out = []byte(strings.Join(append(lines, want), "\n") + "\n")
	return out, !bytes.Equal(out, content)
}
