package transport

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func drawToken(t *rapid.T) Token {
	fp := fingerprint(rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "der"))
	id := rapid.StringMatching(`[A-Za-z0-9._-]{1,64}`)
	tok := NewToken(id.Draw(t, "cluster"), fp, time.Unix(rapid.Int64Range(1, 1<<40).Draw(t, "expires"), 0),
		rapid.StringN(0, 60, 255).Draw(t, "server"))
	tok.ID = id.Draw(t, "id")
	if rapid.Bool().Draw(t, "never expires") {
		tok.Expires = 0
	}
	return tok
}

func encode(t rapid.TB, tok Token) string {
	s, err := tok.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTokenRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tok := drawToken(t)
		s := encode(t, tok)
		if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
			t.Fatalf("%q is not URL-safe", s)
		}
		for _, spelling := range []string{s, " " + s + "\n"} {
			got, err := ParseToken(spelling)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tok, got); d != "" {
				t.Fatal(d)
			}
		}
	})
}

// Whatever a human does to a token by accident is told as damage.
func TestTokenDamageIsTold(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	rapid.Check(t, func(t *rapid.T) {
		s := encode(t, drawToken(t))
		i := rapid.IntRange(0, len(s)-1).Draw(t, "at")
		var bad string
		switch rapid.IntRange(0, 6).Draw(t, "damage") {
		case 0: // one wrong character
			bad = s[:i] + string(alphabet[rapid.IntRange(0, 63).Draw(t, "by")]) + s[i+1:]
		case 1: // two neighbours swapped
			i = min(i, len(s)-2)
			bad = s[:i] + string(s[i+1]) + string(s[i]) + s[i+2:]
		case 2: // cut off at the end
			bad = s[:i]
		case 3: // cut off at the beginning
			bad = s[i+1:]
		case 4: // one character lost
			bad = s[:i] + s[i+1:]
		case 5: // one doubled
			bad = s[:i] + string(s[i]) + s[i:]
		case 6: // wrapped by a terminal
			i = max(i, 1)
			bad = s[:i] + "\n" + s[i:]
		}
		if bad == s {
			return
		}
		tok, err := ParseToken(bad)
		if !errors.Is(err, ErrTokenDamaged) {
			t.Fatalf("%q was %q: %v, %v", bad, s, tok, err)
		}
		if !strings.Contains(err.Error(), "copy it whole") {
			t.Fatalf("%v names no remedy", err)
		}
	})
}

// The checksum is certain, not only likely, for a wrong character and for swapped neighbours: try them all.
func TestTokenEveryTypoIsTold(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	s, err := NewToken(clusterA, newCA(t, clusterA).Fingerprint(), time.Now(), "10.0.0.1:7400").Encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := len(tokenPrefix); i < len(s); i++ {
		for _, r := range alphabet {
			bad := s[:i] + string(r) + s[i+1:]
			if _, err := ParseToken(bad); bad != s && err == nil {
				t.Fatalf("position %d: %q taken for %q", i, bad, s)
			}
		}
		if i+1 < len(s) && s[i] != s[i+1] {
			if _, err := ParseToken(s[:i] + string(s[i+1]) + string(s[i]) + s[i+2:]); err == nil {
				t.Fatalf("swap at %d not seen", i)
			}
		}
	}
}

func TestTokenEncodeRefuses(t *testing.T) {
	good := NewToken(clusterA, fingerprint(nil), time.Time{}, "")
	encode(t, good)
	for name, spoil := range map[string]func(*Token){
		"no cluster":          func(t *Token) { t.ClusterID = "" },
		"odd cluster":         func(t *Token) { t.ClusterID = "a/b" },
		"no id":               func(t *Token) { t.ID = "" },
		"fingerprint":         func(t *Token) { t.CAFingerprint = "sha256:12" },
		"capital fingerprint": func(t *Token) { t.CAFingerprint = "sha256:" + strings.ToUpper(t.CAFingerprint[7:]) },
		"short secret":        func(t *Token) { t.Secret = t.Secret[:10] },
		"negative expiry":     func(t *Token) { t.Expires = -1 },
		"long server":         func(t *Token) { t.Server = strings.Repeat("x", 256) },
	} {
		tok := good
		spoil(&tok)
		if s, err := tok.Encode(); err == nil {
			t.Errorf("%s: encoded as %q", name, s)
		}
	}
}

func TestTokenSecretAndExpiry(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	a, b := NewToken(clusterA, fingerprint(nil), now, ""), NewToken(clusterA, fingerprint(nil), time.Time{}, "")
	if a.ID == b.ID || a.Secret == b.Secret {
		t.Fatal("two tokens share id or secret")
	}
	h := HashSecret(a.Secret)
	if len(h) != 64 || strings.Contains(h, a.Secret) {
		t.Fatalf("hash %q", h)
	}
	if !SecretMatches(a.Secret, h) || SecretMatches(b.Secret, h) || SecretMatches("", h) || SecretMatches(a.Secret, "") {
		t.Fatal("secrets are compared wrongly")
	}
	for _, c := range []struct {
		tok  Token
		at   time.Time
		want bool
	}{{a, now.Add(-time.Second), false}, {a, now, true}, {a, now.Add(time.Hour), true}, {b, now.Add(1000 * time.Hour), false}} {
		if got := c.tok.Expired(c.at); got != c.want {
			t.Errorf("expires %d, at %d: %v", c.tok.Expires, c.at.Unix(), got)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	good, err := NewToken(clusterA, fingerprint(nil), time.Unix(1_800_000_000, 0), "pg1:7400").Encode()
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{good, good[:len(good)-1], "mt1.", "", "mt2.AAAA", "mt1.AAAAAA", strings.Repeat("A", 3000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrTokenDamaged) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if again, err := tok.Encode(); err != nil || again != strings.TrimSpace(s) {
			t.Fatalf("%q is read, but written as %q, %v", s, again, err)
		}
	})
}
