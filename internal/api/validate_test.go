package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// TestBadWritesChangeNothing: whoever may write and asks for something odd gets an answer that says what is wrong, and nothing has happened.
func TestBadWritesChangeNothing(t *testing.T) {
	const form, plain = "application/x-www-form-urlencoded", "text/plain"
	for _, tc := range []struct {
		name, request, body string
		header              []string
		want                int
		says                string
	}{
		{"no body", "POST /switchover", ``, nil, 400, "leader is missing"},
		{"an empty object", "POST /switchover", `{}`, nil, 400, "leader is missing"},
		{"null", "POST /switchover", `null`, nil, 400, "leader is missing"},
		{"empty names", "POST /switchover", `{"leader":"","candidate":""}`, nil, 400, "leader is missing"},
		{"a mistyped key", "POST /switchover", `{"leader":"coord-1","candidat_":"coord-2"}`, nil, 400, `"candidat_"`},
		{"a number for a name", "POST /switchover", `{"leader":7}`, nil, 400, "leader"},
		{"a list for a name", "POST /switchover", `{"leader":["coord-1"]}`, nil, 400, "leader"},
		{"a text for a group", "POST /switchover", `{"group":"0"}`, nil, 400, "group"},
		{"half a group", "POST /switchover", `{"group":0.5}`, nil, 400, "group"},
		{"a group that is not there", "POST /switchover", `{"group":99}`, nil, 400, "no group 99"},
		{"a negative group", "POST /switchover", `{"group":-1}`, nil, 400, "no group -1"},
		{"an unknown node", "POST /switchover", `{"leader":"coord-1","candidate":"mallory"}`, nil, 400, `"mallory"`},
		{"not the primary", "POST /switchover", `{"leader":"coord-2"}`, nil, 412, "not the primary"},
		{"no time", "POST /switchover", `{"leader":"coord-1","scheduled_at":"tomorrow"}`, nil, 400, "is no time"},
		{"a time that is over", "POST /switchover", `{"leader":"coord-1","scheduled_at":"2001-01-01T00:00:00Z"}`, nil, 400, "is over"},
		{"a list", "POST /switchover", `[]`, nil, 400, "array"},
		{"a text", "POST /switchover", `"coord-1"`, nil, 400, "string"},
		{"half an object", "POST /switchover", `{"leader":"coord-1"`, nil, 400, "unexpected EOF"},
		{"two objects", "POST /switchover", `{"leader":"coord-1"}{}`, nil, 400, "more than one"},
		{"no JSON", "POST /switchover", `leader=coord-1`, []string{"Content-Type", form}, 400, "invalid character"},
		{"too large", "POST /switchover", `{"leader":"` + strings.Repeat("x", maxBody) + `"}`, nil, 413, "16384 bytes"},
		{"deep", "POST /switchover", strings.Repeat("[", 12_000), nil, 400, "depth"},
		{"text/plain", "POST /switchover", `{"leader":"coord-1"}`, []string{"Content-Type", plain}, 415, "application/json"},
		{"multipart", "POST /switchover", `{"leader":"coord-1"}`, []string{"Content-Type", "multipart/form-data; boundary=x"}, 415, "application/json"},
		{"no content type at all", "POST /switchover", `{"leader":"coord-1"}`, []string{"Content-Type", "/;;"}, 415, "application/json"},
		{"a page of another site", "POST /switchover", `{"leader":"coord-1"}`, []string{"Content-Type", form, "Sec-Fetch-Site", "cross-site"}, 403, "another site"},
		{"an older browser's page", "POST /switchover", `{"leader":"coord-1"}`, []string{"Origin", "https://mallory.example"}, 403, "another site"},
		{"another method", "PUT /switchover", `{"leader":"coord-1"}`, nil, 405, "PUT is not offered"},

		{"no candidate", "POST /failover", `{"leader":"coord-1"}`, nil, 400, "candidate is missing"},
		{"a candidate of no group", "POST /failover", `{"candidate":"mallory"}`, nil, 400, `"mallory"`},
		{"an unknown key", "POST /failover", `{"candidate":"coord-2","force":true}`, nil, 400, `"force"`},
		{"failover deleted", "DELETE /failover", ``, nil, 405, "DELETE is not offered"},

		{"nothing planned", "DELETE /switchover", ``, nil, 412, "nothing is planned"},

		{"no setting", "PATCH /config", `{}`, nil, 400, "no setting"},
		{"no body", "PATCH /config", ``, nil, 400, "no setting"},
		{"an unknown setting", "PATCH /config", `{"tttl":"6s"}`, nil, 400, "unknown setting"},
		{"null for a setting", "PATCH /config", `{"ttl":null}`, nil, 400, "ttl: a text"},
		{"a list for a setting", "PATCH /config", `{"databases":["a","b"]}`, nil, 400, "databases: a text"},
		{"an object for a setting", "PATCH /config", `{"ttl":{"a":1}}`, nil, 400, "ttl: a text"},
		{"a number without a unit", "PATCH /config", `{"ttl":6}`, nil, 400, "ttl"},
		{"a text for a switch", "PATCH /config", `{"leader_avoid":"maybe"}`, nil, 400, "leader_avoid"},
		{"out of range", "PATCH /config", `{"ttl":"1s"}`, nil, 400, "4s"},
		{"one right, one wrong", "PATCH /config", `{"degrade_after":"3s","ttl":"never"}`, nil, 400, "ttl"},
		{"the whole configuration", "PUT /config", `{"ttl":"6s"}`, nil, 405, "PUT is not offered"},

		{"a restart with a time", "POST /restart", `{"schedule":"2030-01-01T00:00:00Z"}`, nil, 400, `"schedule"`},
		{"a restart with a condition", "POST /restart", `{"role":"replica"}`, nil, 400, `"role"`},
		{"a restart of rubbish", "POST /restart", `}`, nil, 400, "invalid character"},
		{"a clone of something", "POST /reinitialize", `{"from_leader":true}`, nil, 400, `"from_leader"`},
		{"a clone by a text", "POST /reinitialize", `{"force":"yes"}`, nil, 400, "force"},
		{"too large a clone", "POST /reinitialize", strings.Repeat(" ", maxBody+1), nil, 413, "16384 bytes"},

		{"a write to a health check", "POST /primary", `{}`, nil, 405, "POST is not offered"},
		{"a write to nowhere", "POST /nowhere", `{}`, nil, 405, "POST is not offered"},
		{"a join token for a credential", "POST /reinitialize", ``, []string{"Authorization", "Bearer mt1.AAAA"}, 401, "bearer token"},
	} {
		t.Run(tc.request+" "+tc.name, func(t *testing.T) {
			s, w := strangers(Access{Writes: true})
			method, path, _ := strings.Cut(tc.request, " ")
			got := ask(t, s, "192.0.2.1", method, path, tc.body, append([]string{"Authorization", basicAdmin}, tc.header...)...)
			var e apiError
			if err := json.Unmarshal(got.Body.Bytes(), &e); err != nil || e.Error.Code == "" || !strings.Contains(e.Error.Message, tc.says) {
				t.Errorf("%v %s, want %q", err, got.Body, tc.says)
			}
			if got.Code != tc.want || got.Code == http.StatusMethodNotAllowed && got.Header().Get("Allow") == "" {
				t.Errorf("%d, want %d: %s", got.Code, tc.want, got.Body)
			}
			if len(w.commands) > 0 || w.acts > 0 {
				t.Errorf("carried out: %v, %d acts", w.commands, w.acts)
			}
		})
	}
}

// TestAllowNamesWhatIsOffered: a client that took the wrong method sees the right ones.
func TestAllowNamesWhatIsOffered(t *testing.T) {
	s, _ := strangers(Access{Writes: true})
	for request, want := range map[string]string{
		"PUT /switchover": "DELETE, GET, HEAD, OPTIONS, POST", "PUT /config": "GET, HEAD, OPTIONS, PATCH", "POST /cluster": "GET, HEAD, OPTIONS",
	} {
		method, path, _ := strings.Cut(request, " ")
		if got := ask(t, s, "192.0.2.1", method, path, "").Header().Get("Allow"); got != want {
			t.Errorf("%s: %q, want %q", request, got, want)
		}
	}
}

// TestBodiesAsClientsSendThem: curl -d, Patroni's own client and clients that say nothing.
func TestBodiesAsClientsSendThem(t *testing.T) {
	for _, kind := range []string{"", "application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded"} {
		s, w := strangers(Access{Writes: true})
		header := []string{"Authorization", basicAdmin}
		if kind != "" {
			header = append(header, "Content-Type", kind)
		}
		if got := ask(t, s, "192.0.2.1", "POST", "/switchover", `{"leader":"coord-1"}`, header...); got.Code != http.StatusAccepted || len(w.commands) != 1 {
			t.Errorf("%q: %d %s", kind, got.Code, got.Body)
		}
	}
}
