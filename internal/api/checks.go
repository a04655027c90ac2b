package api

import (
	"fmt"
	"net/url"
	"strings"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

// checkFunc answers a health check; an error is a request that cannot be understood.
type checkFunc func(st admin.Status, q url.Values) (bool, error)

// checks are the health checks by path.
func checks() map[string]checkFunc {
	out := map[string]checkFunc{
		"/leader": func(st admin.Status, _ url.Values) (bool, error) { return holdsLease(st), nil },
		// No standby clusters in this version.
		"/standby-leader": never, "/standby_leader": never,
		"/replica":          standby,
		"/read-only":        either(primary, standby),
		"/health":           func(st admin.Status, _ url.Values) (bool, error) { return running(st), nil },
		"/liveness":         liveness,
		"/readiness":        readiness,
		"/quorum":           and(standby, inQuorum),
		"/read-only-quorum": either(primary, and(standby, inQuorum)),
		"/read-only-sync":   either(primary, and(standby, hasEveryCommit)),
	}
	for _, path := range []string{"/", "/primary", "/read-write", "/master"} {
		out[path] = primary
	}
	for _, path := range []string{"/synchronous", "/sync"} {
		out[path] = and(standby, hasEveryCommit)
	}
	for _, path := range []string{"/asynchronous", "/async"} {
		out[path] = and(standby, not(inQuorum))
	}
	return out
}

func never(admin.Status, url.Values) (bool, error) { return false, nil }

func and(a, b checkFunc) checkFunc {
	return func(st admin.Status, q url.Values) (bool, error) {
		if ok, err := a(st, q); !ok || err != nil {
			return false, err
		}
		return b(st, q)
	}
}

func either(a, b checkFunc) checkFunc {
	return func(st admin.Status, q url.Values) (bool, error) {
		if ok, err := a(st, q); ok || err != nil {
			return ok, err
		}
		return b(st, q)
	}
}

func not(a checkFunc) checkFunc {
	return func(st admin.Status, q url.Values) (bool, error) {
		ok, err := a(st, q)
		return !ok && err == nil, err
	}
}

func primary(st admin.Status, _ url.Values) (bool, error) {
	ok, _ := st.Writable()
	return ok, nil
}

// holdsLease is Patroni's "holds the leader lock", whatever PostgreSQL does.
func holdsLease(st admin.Status) bool {
	n, ok := st.Me()
	return ok && st.Self != nil && st.State.Groups[n.Group].Lease.Holder == n.ID && st.Self.LeaseLeft > 0
}

func running(st admin.Status) bool { return st.Self != nil && st.Self.Postgres.Reachable }

// standby passes for a running standby whose tags and lag the query allows.
func standby(st admin.Status, q url.Values) (bool, error) {
	n, ok := st.Me()
	if !ok || !running(st) || !st.Self.Postgres.InRecovery || n.Tags.NoLoadBalance {
		return false, nil
	}
	if want := q.Get("replication_state"); want != "" && (want != "streaming" || !st.Self.Postgres.Streaming) {
		return false, nil
	}
	tags := admin.TagMap(n.Tags)
	for key := range q {
		if name, isTag := strings.CutPrefix(key, "tag_"); isTag && !strings.EqualFold(fmt.Sprint(tags[name]), q.Get(key)) {
			return false, nil
		}
	}
	return lagAllowed(st, q.Get("lag"), -1, st.Self.Report.Replay)
}

// lagAllowed compares a position with the primary's last known one. limit is Patroni's ?lag=: bytes or a size with a unit; empty means
// the default, below 0 any lag.
func lagAllowed(st admin.Status, limit string, most int64, at fsm.LSN) (bool, error) {
	if limit != "" {
		var err error
		if most, err = admin.ParseBytes(limit); err != nil {
			return false, fmt.Errorf("lag: %w", err)
		}
	}
	if most < 0 {
		return true, nil
	}
	n, _ := st.Me()
	p, known := st.State.Nodes[st.State.Groups[n.Group].Lease.Holder]
	if !known || p.Report.Replay == 0 {
		return false, nil
	}
	return int64(p.Report.Replay)-int64(at) <= most, nil
}

func inQuorum(st admin.Status, _ url.Values) (bool, error) {
	n, ok := st.Me()
	return ok && st.State.Groups[n.Group].Sync.Target().Has(n.ID), nil
}

// hasEveryCommit passes when every acknowledged commit waited for this very standby.
func hasEveryCommit(st admin.Status, _ url.Values) (bool, error) {
	n, ok := st.Me()
	if !ok {
		return false, nil
	}
	sync := st.State.Groups[n.Group].Sync
	t := sync.Target()
	return !sync.Joint() && !sync.Unknown && t.Has(n.ID) && t.K == len(t.S), nil
}

// liveness passes while the node's loop turns.
func liveness(st admin.Status, _ url.Values) (bool, error) {
	n, ok := st.Me()
	switch {
	case st.Self == nil:
		return false, nil
	case !ok:
		return true, nil // the loop turns and waits for the state
	}
	ttl := st.State.Cluster.Settings.TTL
	if !st.Self.Writable {
		ttl *= 2
	}
	return st.State.Groups[n.Group].Paused || st.Self.Age <= ttl, nil
}

// readiness passes for an open primary, and for a standby that streams and lags little: mode apply (default) or write says by which position.
func readiness(st admin.Status, q url.Values) (bool, error) {
	if ok, err := primary(st, q); ok || err != nil {
		return ok, err
	}
	if _, ok := st.Me(); !ok || !running(st) || !st.Self.Postgres.Streaming {
		return false, nil
	}
	at := st.Self.Report.Replay
	switch mode := q.Get("mode"); mode {
	case "", "apply":
	case "write":
		at = max(st.Self.Report.Receive, at)
	default:
		return false, fmt.Errorf("mode: %q must be apply or write", mode)
	}
	return lagAllowed(st, q.Get("lag"), st.State.Cluster.Settings.MaximumLag, at)
}
