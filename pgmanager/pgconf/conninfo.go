package pgconf

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Conninfo is a libpq connection string in its keyword form.
type Conninfo map[string]string

// String renders the keywords in alphabetical order, each value quoted; empty values are left out.
func (c Conninfo) String() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(c)) {
		if c[k] == "" {
			continue
		}
		v := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(c[k])
		parts = append(parts, k+"='"+v+"'")
	}
	return strings.Join(parts, " ")
}

// ParseConninfo reads a keyword connection string; the URI form is an error.
func ParseConninfo(s string) (Conninfo, error) {
	c := Conninfo{}
	rest := strings.TrimLeft(s, " \t\n\r")
	for rest != "" {
		key, after, ok := strings.Cut(rest, "=")
		key = strings.TrimSpace(key)
		if !ok || key == "" || strings.ContainsAny(key, " \t\n\r:'\\") {
			return nil, fmt.Errorf("parse connection string %q: want keyword='value' pairs", Redact(s))
		}
		value, tail, ok := cutValue(strings.TrimLeft(after, " \t\n\r"))
		if !ok {
			return nil, fmt.Errorf("parse connection string %q: unterminated value of %s", Redact(s), key)
		}
		c[key] = value
		rest = strings.TrimLeft(tail, " \t\n\r")
	}
	return c, nil
}

// cutValue splits a value off the front of s, quoted or plain.
func cutValue(s string) (value, rest string, ok bool) {
	quoted := strings.HasPrefix(s, "'")
	if quoted {
		s = s[1:]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case quoted && c == '\'':
			return b.String(), s[i+1:], true
		case !quoted && strings.IndexByte(" \t\n\r", c) >= 0:
			return b.String(), s[i:], true
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", !quoted
}

// Redact hides a connection string that carries a password; Matriarch's own never do.
func Redact(s string) string {
	if strings.Contains(strings.ToLower(s), "password") || strings.Contains(s, "://") {
		return "(hidden)"
	}
	return s
}

// PassfileLine renders one line of a libpq password file, valid for every host, port and database.
func PassfileLine(user, password string) string {
	esc := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
	return "*:*:*:" + esc.Replace(user) + ":" + esc.Replace(password) + "\n"
}
