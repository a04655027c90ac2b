package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"matriarch/internal/testkit"
)

// TestReinit: a standby is cloned anew, from the primary or another standby, and what it had is kept.
func TestReinit(t *testing.T) {
	c, nodes := three(t)
	w := c.Write(0)
	p := c.WaitPrimary(0)
	standbys := slices.DeleteFunc(slices.Clone(nodes), func(n *testkit.Node) bool { return n == p })
	a, b := standbys[0], standbys[1]
	asides := func() int {
		found, err := filepath.Glob(a.DataDir() + ".set-aside-*")
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}

	c.Run("refused", func(t *testing.T) {
		for why, args := range map[string][]string{
			"switch over first":                   {"reinit", p.Name, "--yes"},
			"a node cannot be cloned from itself": {"reinit", a.Name, "--from", a.Name, "--yes"},
			"there is no node":                    {"reinit", "nobody", "--yes"},
		} {
			if r := a.CLI(args...); r.Code == 0 || !strings.Contains(r.Err, why) {
				t.Errorf("%v: code %d\n%s%s", args, r.Code, r.Out, r.Err)
			}
		}
	})

	c.Run("from the primary, then from a standby, over the limit", func(t *testing.T) {
		progress := false
		for i, args := range [][]string{{}, {"--from", b.Name}, {}} {
			r := p.CLI(append([]string{"reinit", a.Name, "--wait", "--yes"}, args...)...)
			if r.Code != 0 || !strings.Contains(r.Out, a.Name+" was cloned from ") {
				t.Fatalf("code %d\n%s%s", r.Code, r.Out, r.Err)
			}
			progress = progress || strings.Contains(r.Err, "creating replica") // a clone takes a second or two
			c.WaitHealthy()
			if n := asides(); n != min(i+1, 2) {
				t.Errorf("%d directories set aside after clone %d", n, i+1)
			}
		}
		if !progress {
			t.Error("no progress was shown of any")
		}
	})

	w.Check()
}
