package pgconf

import (
	"fmt"
	"strings"
)

// QuoteSetting renders a value for postgresql.conf. The file's strings know backslash escapes and hold no raw newline.
func QuoteSetting(v string) string {
	var b strings.Builder
	b.WriteByte('\'')
	for i := range len(v) {
		switch c := v[i]; c {
		case '\'':
			b.WriteString("''")
		case '\\':
			b.WriteString(`\\`)
		case '\n':
			b.WriteString(`\n`)
		case '\r':
			b.WriteString(`\r`)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('\'')
	return b.String()
}

// QuoteIdent renders an SQL identifier; pg_hba.conf and synchronous_standby_names use the same form.
func QuoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// QuoteLiteral renders an SQL string literal, independent of standard_conforming_strings.
func QuoteLiteral(s string) string {
	q := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(q, `\`, `\\`)
	}
	return q
}

// unquoteSetting reads one value of postgresql.conf, quoted or bare, and returns what follows it.
func unquoteSetting(s string) (value, rest string, err error) {
	if !strings.HasPrefix(s, "'") {
		end := strings.IndexAny(s, " \t#\r")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], nil
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\'' && i+1 < len(s) && s[i+1] == '\'':
			b.WriteByte('\'')
			i++
		case s[i] == '\'':
			return b.String(), s[i+1:], nil
		case s[i] == '\\' && i+1 < len(s):
			i++
			i += unescape(&b, s[i:])
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", fmt.Errorf("unterminated quoted value %s", s)
}

// unescape writes what the escape at the start of s (behind the backslash) stands for; it returns how many bytes beyond
// the first it used.
func unescape(b *strings.Builder, s string) int {
	switch s[0] {
	case 'b':
		b.WriteByte('\b')
	case 'f':
		b.WriteByte('\f')
	case 'n':
		b.WriteByte('\n')
	case 'r':
		b.WriteByte('\r')
	case 't':
		b.WriteByte('\t')
	case '0', '1', '2', '3', '4', '5', '6', '7':
		n, v := 0, 0
		for n < 3 && n < len(s) && s[n] >= '0' && s[n] <= '7' {
			v = v<<3 + int(s[n]-'0')
			n++
		}
		b.WriteByte(byte(v))
		return n - 1
	default:
		b.WriteByte(s[0])
	}
	return 0
}
