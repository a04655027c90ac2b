package pgconf

import (
	"fmt"
	"strconv"
	"strings"

	"matriarch/fsm"
)

// MaxName is the longest slot or application name in bytes that PostgreSQL keeps whole.
const MaxName = 63

// SlotPrefix begins the name of every slot that Matriarch owns.
const SlotPrefix = "m_"

// SyncNames renders synchronous_standby_names: any k of names; empty when nobody has to confirm.
func SyncNames(k int, names []string) string { return syncNames("ANY", k, names) }

// FirstSyncNames renders the k of names that are connected and stand first.
func FirstSyncNames(k int, names []string) string { return syncNames("FIRST", k, names) }

func syncNames(method string, k int, names []string) string {
	if k <= 0 || len(names) == 0 {
		return ""
	}
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = QuoteIdent(n)
	}
	return fmt.Sprintf("%s %d (%s)", method, k, strings.Join(quoted, ", "))
}

// ParseSyncNames reads what SyncNames wrote; the empty string is 0 of none. Other forms that PostgreSQL knows are errors:
// they count votes differently.
func ParseSyncNames(s string) (k int, names []string, err error) {
	bad := func() (int, []string, error) {
		return 0, nil, fmt.Errorf("parse synchronous_standby_names %q: want ANY k (names)", s)
	}
	rest := strings.TrimSpace(s)
	if rest == "" {
		return 0, nil, nil
	}
	word, rest, ok := strings.Cut(rest, " ")
	num, list, ok2 := strings.Cut(rest, "(")
	k, err = strconv.Atoi(strings.TrimSpace(num))
	if !ok || !ok2 || !strings.EqualFold(word, "ANY") || err != nil || k < 1 {
		return bad()
	}
	for {
		var name string
		name, list, ok = cutName(strings.TrimLeft(list, " \t"))
		if !ok {
			return bad()
		}
		names = append(names, name)
		list = strings.TrimLeft(list, " \t")
		if strings.TrimSpace(list) == ")" {
			return k, names, nil
		}
		if !strings.HasPrefix(list, ",") {
			return bad()
		}
		list = list[1:]
	}
}

// cutName splits a name, quoted or plain, off the front of s.
func cutName(s string) (name, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexFunc(s, func(r rune) bool { return !isNameRune(r) })
		if end <= 0 {
			return "", "", false
		}
		return s[:end], s[end:], true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		return b.String(), s[i+1:], b.Len() > 0
	}
	return "", "", false
}

func isNameRune(r rune) bool {
	return r == '_' || (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') || (r >= '0' && r <= '9')
}

// AppName is the application_name under which a member follows the primary of one epoch. It changes with the epoch, so
// that a receiver of an older one has no vote.
func AppName(node fsm.NodeID, e fsm.Epoch) string {
	id := strings.ReplaceAll(sanitize(string(node)), "_", "")
	return "m_" + id[:min(len(id), 8)] + "_" + e.Suffix()
}

// SlotName is the member's physical replication slot on whatever node is primary.
func SlotName(node fsm.NodeID) string {
	n := SlotPrefix + sanitize(string(node))
	return n[:min(len(n), MaxName)]
}

// sanitize maps a node id to the letters that slot names allow.
func sanitize(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9'):
			return r
		}
		return '_'
	}, s)
}
