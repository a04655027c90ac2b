package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"matriarch/internal/admin"
	"matriarch/internal/testkit"
)

// get asks a node's API and returns the status code; 0 when nobody answers.
func get(t *testing.T, n *testkit.Node, path string) int {
	t.Helper()
	cl := http.Client{Timeout: 2 * time.Second}
	r, err := cl.Get("http://" + n.API() + path)
	if err != nil {
		return 0
	}
	_ = r.Body.Close()
	return r.StatusCode
}

// inode tells whether a directory is still the same one.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Ino
}

var errNotHeard = errors.New("the leader has not heard of it lately")

func errVersion(have string) error { return fmt.Errorf("its version is %s", have) }

// waitsForMore: the conductor has asked, and what it got does not suffice.
func waitsForMore(st admin.Status) error {
	g := st.State.Groups[0]
	plan := st.Plans[0]
	if g.Held() || plan.Rule != "C310" || len(plan.Reason) == 0 {
		return fmt.Errorf("held %v, rule %s: %s", g.Held(), plan.Rule, plan.Reason)
	}
	return nil
}

// status is the leader's picture.
type status = admin.Status

var errNotYet = errors.New("not yet")

// streams: the node says that it streams.
func streams(st status, n *testkit.Node) error {
	if s := st.State.Nodes[n.ID()].Report.State; s != "streaming" {
		return fmt.Errorf("it is %s", s)
	}
	return nil
}

// initDB makes a data directory that Matriarch knows nothing of.
func initDB(t *testing.T, n *testkit.Node) {
	t.Helper()
	if err := os.MkdirAll(n.Dir, 0o755); err != nil { //nolint:gosec // PostgreSQL's own user passes through it
		t.Fatal(err)
	}
	if err := os.Mkdir(n.DataDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	give(t, n.DataDir(), "postgres")
	tool(t, "", "initdb", "-D", n.DataDir(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-k")
}

// give makes a file another user's, as far as we may.
func give(t *testing.T, path, name string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	uid, gid := testkit.IDs(t, name)
	if err := os.Chown(path, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
}

func makeFor(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // PostgreSQL's own user passes through it
		t.Fatal(err)
	}
	give(t, dir, name)
}

func writeFor(t *testing.T, path, name string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	give(t, path, name)
}
