package bundle

import (
	"bytes"
	"regexp"
	"slices"
)

// Removed stands where a secret was.
const Removed = "[removed]"

// leastSecret is the length from which a given secret is looked for: a shorter one would take ordinary words out.
const leastSecret = 6

const telling = `(?:passwd|password|passphrase|secret|credential|access_?key|api_?key|private_?key|authorization)`

// rule replaces what looks like a secret; what stands before it stays.
type rule struct {
	find *regexp.Regexp
	with string
}

func rules() []rule {
	mk := func(find, with string) rule { return rule{regexp.MustCompile(find), with} }
	return []rule{
		mk(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`, Removed),
		mk(`\bmt1\.[A-Za-z0-9_=.+/-]+`, Removed),
		mk(`SCRAM-SHA-256\$[^\s'"]+`, Removed),
		mk(`\bmd5[0-9a-f]{32}\b`, Removed),
		mk(`(?i)\b(bearer|basic)\s+[A-Za-z0-9_=.+/~-]{6,}`, "${1} "+Removed),
		mk(`(://[^\s:/@]*):[^\s@]+@`, "${1}:"+Removed+"@"),
		// SQL in a log: ALTER ROLE x PASSWORD 'y'.
		mk(`(?i)\b(password)(\s+)(?:E?'(?:[^'\\]|\\.|'')*'?|\$\$.*?\$\$)`, "${1}${2}'"+Removed+"'"),
		// A key that tells, and a value in quotes: JSON, YAML, postgresql.conf, key='value'.
		mk(`(?i)([\w.-]*`+telling+`[\w.-]*\\?["']?\s*[:=]\s*)\\?"(?:[^"\\\n]|\\.)*\\?"`, `${1}"`+Removed+`"`),
		mk(`(?i)([\w.-]*`+telling+`[\w.-]*\\?["']?\s*[:=]\s*)'(?:[^'\\\n]|\\.|'')*'`, "${1}'"+Removed+"'"),
		// The same at the beginning of a line, without quotes: the rest of the line.
		mk(`(?im)^(\s*[\w.-]*`+telling+`[\w.-]*\s*[:=]\s*)[^\s"'\[][^\n]*`, "${1}"+Removed),
		// Elsewhere without quotes: up to the next blank. Connection strings and environments.
		mk(`(?i)([\w.-]*`+telling+`[\w.-]*=)[^\s"'&\[][^\s"'&,;]*`, "${1}"+Removed),
	}
}

// Redactor takes secrets out of text.
type Redactor struct {
	known [][]byte
	rules []rule
}

// NewRedactor knows these secrets by heart, and others by their looks.
func NewRedactor(secrets []string) *Redactor {
	r := &Redactor{rules: rules()}
	for _, s := range secrets {
		if s := bytes.TrimSpace([]byte(s)); len(s) >= leastSecret {
			r.known = append(r.known, s)
		}
	}
	// The longest first: one may be part of another.
	slices.SortFunc(r.known, func(a, b []byte) int { return len(b) - len(a) })
	return r
}

// Clean returns text without secrets.
func (r *Redactor) Clean(text []byte) []byte {
	for _, s := range r.known {
		text = bytes.ReplaceAll(text, s, []byte(Removed))
	}
	for _, x := range r.rules {
		text = x.find.ReplaceAll(text, []byte(x.with))
	}
	return text
}
