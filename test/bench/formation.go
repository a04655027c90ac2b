package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// database is the one that Citus works in.
const database = "app"

// formation is seven nodes under one manager: group 0 of three, groups 1 and 2 of two.
type formation interface {
	// describe names version and settings, for the reader of the figures.
	describe(ctx context.Context) (string, error)
	// up makes it from nothing and waits until it is whole; down removes all of it, whatever is left of it.
	up(ctx context.Context) error
	down(ctx context.Context) error
	// hosts are all nodes of a group, as host:port.
	hosts(group int) []string
	// dsn leads to the primary of a group, whichever of the hosts it is.
	dsn(hosts []string) (string, error)
	primary(ctx context.Context, group int) (string, error)
	// switchover returns once it is over, by the manager's own word.
	switchover(ctx context.Context, group int) (switched, error)
	// kill sends SIGKILL: to everything of the node, or only to its postmaster or agent. Start brings back what does not come back alone.
	kill(ctx context.Context, node, only string) error
	start(ctx context.Context, node string) error
	// freeze stops a node's agent by SIGSTOP and lets it go on later.
	freeze(ctx context.Context, node string, hold time.Duration) error
	// votes says whether a node can lead the manager's log, and lead makes it do so; true and nothing where that log is elsewhere.
	votes(ctx context.Context, node string) (bool, error)
	lead(ctx context.Context, node string) error
	// whole waits until every node has its place again and Citus knows all primaries.
	whole(ctx context.Context) error
	// pauseParts are what the logs tell of the pause of a switchover that began since then; none where they tell nothing.
	pauseParts(since time.Time) ([]step, error)
	// logs are the files that explain a failure.
	logs() []string
}

// switched is what a manager says of a switchover that is over.
type switched struct {
	Steps    []step  `json:"steps,omitempty"`
	Pause    []step  `json:"pause,omitempty"` // parts of the pause
	PausedMS float64 `json:"paused_ms,omitempty"`
	Outcome  string  `json:"outcome,omitempty"`
}

// step is one of its phases.
type step struct {
	Phase string  `json:"phase"`
	Took  float64 `json:"ms"`
}

// wholeWait is how long a formation may take to come together.
const wholeWait = 3 * time.Minute

// clientDSN leads to whichever of the hosts accepts writes.
func clientDSN(hosts []string, password string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", password), Host: strings.Join(hosts, ","), Path: "/" + database}
	u.RawQuery = url.Values{
		"target_session_attrs": {"read-write"}, "connect_timeout": {"2"}, "application_name": {"bench"},
	}.Encode()
	return u.String()
}

// until asks again and again; the last reason is part of the error.
func until(ctx context.Context, what string, limit time.Duration, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		if !sleep(ctx, 300*time.Millisecond) {
			return fmt.Errorf("%s: not within %s: %w", what, limit, last)
		}
	}
}
