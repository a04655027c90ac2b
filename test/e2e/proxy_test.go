package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/internal/proxy"
	"matriarch/internal/testkit"
)

// TestProxy has a client that knows one address, the proxy of a worker's node, while the coordinator group goes through what can
// happen to it.
func TestProxy(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	c.Proxy = true
	c.Bootstrap("n1")
	c.Join(0, "n2", "n3")
	c.Join(1, "w1")
	c.WaitHealthy()
	group, entry := c.Nodes[:3], c.Nodes[3]

	c.Run("every port leads to its role", func(t *testing.T) { rolesAreServed(t, c, group, entry) })
	w := writeThrough(t, c, entry)

	c.Run("switchover", func(t *testing.T) {
		old := c.WaitPrimary(0)
		to := others(group, old)[0]
		r, at := switchOver(c, entry, "--candidate", to.Name, "--yes")
		t.Logf("the command says\n%s", r.Out)
		w.waitAck()
		within(t, "the gap of a switchover", w.gap(at), 500*time.Millisecond+slack)
		within(t, "from the state's word to the client's next commit", w.sinceOpened(), openGrace+slack)
		w.expectErrors(at, "session: 57P01")
		c.WaitHealthy()
	})

	c.Run("postmaster killed", func(t *testing.T) {
		old := c.WaitPrimary(0)
		_, at := losesPostmaster(c, old)
		w.waitAck()
		within(t, "the gap of a killed postmaster", w.gap(at), 1500*time.Millisecond+slack)
		w.expectErrors(at, "session: ended", "session: 57P01")
		c.WaitHealthy()
	})

	c.Run("node killed", func(t *testing.T) {
		old := c.WaitPrimary(0)
		at := old.PowerOff()
		c.WaitPrimary(0, old)
		w.waitAck()
		within(t, "the gap of a killed node", w.gap(at), 7*time.Second+slack)
		w.expectErrors(at, "session: ended", "session: 57P01", "connect: 57P03") // a backend may outlive its postmaster by a sentence
		old.Start()
		c.WaitHealthy()
	})

	c.Run("node frozen", func(t *testing.T) {
		old := c.WaitPrimary(0)
		idle, err := entry.ConnectVia(t.Context(), entry.ToCoordinator(), testkit.Database)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan time.Time, 1)
		go func() {
			_, _ = idle.WaitForNotification(context.WithoutCancel(t.Context()))
			ended <- time.Now()
		}()
		before := c.GroupState(0).Epoch
		at := old.FreezeAll()
		waitNext(c, before)
		w.waitAck()
		within(t, "the gap of a frozen node", w.gap(at), 7*time.Second+slack)
		w.expectErrors(at, "session: ended", "session: timeout", "connect: 57P03")
		lost := time.Time{}
		for _, h := range c.State().History[0] {
			if (h.Kind == "expired" || h.Kind == "revoked" || h.Kind == "released") && h.Epoch == before && (lost.IsZero() || h.At.Before(lost)) {
				lost = h.At
			}
		}
		select {
		case when := <-ended:
			within(t, "ending an idle session after its server has lost the lease", when.Sub(lost), time.Second+slack)
			if when.Before(at) {
				t.Error("it ended before")
			}
		case <-time.After(slack):
			t.Error("the idle session to the deposed server is still there")
		}
		old.PowerOff()
		old.Start()
		c.WaitHealthy()
	})

	w.check()
	timelinesAgree(t, c)
}

// openGrace is after how long a proxy lets clients in without the primary's own word.
const openGrace = time.Second

// rolesAreServed looks where each listener of each node leads, and at what the node says of it.
func rolesAreServed(t *testing.T, c *testkit.Cluster, group []*testkit.Node, entry *testkit.Node) {
	p := c.WaitPrimary(0)
	server := func(addr string) string {
		t.Helper()
		conn, err := entry.ConnectVia(t.Context(), addr, "postgres")
		if err != nil {
			t.Fatalf("connect to %s: %v", addr, err)
		}
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
		var ip string
		if err := conn.QueryRow(t.Context(), "SELECT host(inet_server_addr())").Scan(&ip); err != nil {
			t.Fatalf("through %s: %v", addr, err)
		}
		return ip
	}
	for _, n := range c.Nodes {
		if got := server(n.ToCoordinator()); got != p.IP {
			t.Errorf("the coordinator's port of %s leads to %s, not to %s", n.Name, got, p.Name)
		}
		// The proxy of a worker cannot know the password of another group's superuser.
		conn, err := entry.ConnectVia(t.Context(), n.ToWorker(), "postgres")
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close(t.Context())
	}
	readers := map[string]bool{}
	for range 4 {
		readers[server(entry.ToStandby())] = true
	}
	want := map[string]bool{}
	for _, n := range others(group, p) {
		want[n.IP] = true
	}
	if !maps.Equal(readers, want) {
		t.Errorf("readers reached %v, want %v", readers, want)
	}
	var view struct {
		Proxy []proxy.ListenerStats `json:"proxy"`
	}
	r := p.CLI("--output", "json", "status", entry.Name)
	if err := json.Unmarshal([]byte(r.Out), &view); err != nil || len(view.Proxy) != 3 {
		t.Fatalf("status: %v\n%s%s", err, r.Out, r.Err)
	}
	if s := view.Proxy[2]; s.Kind != proxy.Standby || s.Active != 4 || s.Accepted < 4 || len(s.Servers) != 3 || s.Addr != entry.ToStandby() {
		t.Errorf("the standby's listener says %+v", s)
	}
	if r := p.CLI("status", entry.Name); !strings.Contains(r.Out, "proxy coordinator at "+entry.ToCoordinator()+": 1 sessions") {
		t.Errorf("status says\n%s", r.Out)
	}
	resp, err := http.Get("http://" + entry.API() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); !strings.Contains(string(body), `matriarch_proxy_active{listener="standby",name="w1",`) {
		t.Error("no metrics of the proxy")
	}
}

// through is a client that writes a number every 10 ms through one address, in one session for as long as that lasts.
type through struct {
	c      *testkit.Cluster
	addr   string
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	tried   int64
	acks    []testkit.Ack
	errors  []failure
	warning string // SQLSTATE of the last one that the session was sent
}

type failure struct {
	at   time.Time
	kind string // connect or session, and what
	err  error
}

// clientPatience is longer than the proxy makes anybody wait.
const clientPatience = 15 * time.Second

func writeThrough(t *testing.T, c *testkit.Cluster, entry *testkit.Node) *through {
	t.Helper()
	c.WaitPrimary(0).Exec(testkit.Database, "CREATE ROLE proxied LOGIN PASSWORD 'proxied'", "CREATE TABLE proxied (n bigint PRIMARY KEY)", "GRANT ALL ON proxied TO proxied")
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	w := &through{c: c, addr: entry.ToCoordinator(), cancel: cancel, done: make(chan struct{})}
	t.Cleanup(w.stop)
	go w.run(ctx)
	w.waitAck()
	return w
}

func (w *through) stop() {
	w.cancel()
	<-w.done
}

func (w *through) run(ctx context.Context) {
	defer close(w.done)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var conn *pgx.Conn
	for ctx.Err() == nil {
		<-tick.C
		var err error
		if conn == nil {
			if conn, err = w.connect(ctx); err != nil {
				w.failed("connect", err)
				conn = nil
				continue
			}
		}
		if err = w.insert(conn); err != nil {
			w.failed("session", err)
			_ = conn.PgConn().Conn().Close()
			conn = nil
		}
	}
	if conn != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
	}
}

func (w *through) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(fmt.Sprintf("postgres://proxied:proxied@%s/%s?sslmode=prefer", w.addr, testkit.Database))
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.warning = ""
	w.mu.Unlock()
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.warning = n.Code
	}
	ctx, cancel := context.WithTimeout(ctx, clientPatience)
	defer cancel()
	return pgx.ConnectConfig(ctx, cfg)
}

func (w *through) insert(conn *pgx.Conn) error {
	w.mu.Lock()
	w.tried++
	n := w.tried
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), clientPatience)
	defer cancel()
	if _, err := conn.Exec(ctx, "INSERT INTO proxied VALUES ($1)", n); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acks = append(w.acks, testkit.Ack{N: n, At: time.Now()})
	return nil
}

func (w *through) failed(step string, err error) {
	kind := "ended"
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		kind = pg.Code
	} else if strings.Contains(err.Error(), "refused") {
		kind = "connection refused"
	} else if pgconn.Timeout(err) {
		kind = "timeout"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if kind == "ended" && w.warning != "" { // a commit that waits for a standby ends with a warning and no error
		kind = w.warning
	}
	w.errors = append(w.errors, failure{time.Now(), step + ": " + kind, err})
}

// waitAck waits until a write that began after the call was acknowledged.
func (w *through) waitAck() {
	w.c.T.Helper()
	w.mu.Lock()
	after := w.tried
	w.mu.Unlock()
	w.c.Eventually("a write through the proxy is acknowledged", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case len(w.acks) > 0 && w.acks[len(w.acks)-1].N > after+1:
			return nil
		case len(w.errors) > 0:
			return fmt.Errorf("last error: %w", w.errors[len(w.errors)-1].err)
		}
		return errors.New("no error either")
	})
}

// sinceOpened is how long after a primary was open by the state's word the client was served again.
func (w *through) sinceOpened() time.Duration {
	w.c.T.Helper()
	var opened time.Time
	for _, h := range w.c.State().History[0] {
		if h.Kind == "opened" {
			opened = h.At
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.acks {
		if a.At.After(opened) {
			return a.At.Sub(opened)
		}
	}
	return 0
}

// gap is the longest time without an acknowledged write since a moment.
func (w *through) gap(since time.Time) (longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 1; i < len(w.acks); i++ {
		if w.acks[i].At.After(since) {
			longest = max(longest, w.acks[i].At.Sub(w.acks[i-1].At))
		}
	}
	return longest
}

// expectErrors allows one failure for each session that was there, and these kinds only.
func (w *through) expectErrors(since time.Time, kinds ...string) {
	w.c.T.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	sessions := 0
	for _, f := range w.errors {
		if f.at.Before(since) {
			continue
		}
		w.c.T.Logf("the client saw %s after %s: %v", f.kind, f.at.Sub(since).Round(time.Millisecond), f.err)
		if strings.HasPrefix(f.kind, "session") {
			sessions++
		}
		if !slices.Contains(kinds, f.kind) {
			w.c.T.Errorf("%s: only %v may happen", f.kind, kinds)
		}
	}
	if sessions != 1 {
		w.c.T.Errorf("%d sessions ended, want the one that was there", sessions)
	}
}

// check looks for every acknowledged number.
func (w *through) check() {
	w.c.T.Helper()
	w.stop()
	p := w.c.WaitPrimary(0)
	present, err := p.Numbers("proxied")
	if err != nil {
		w.c.T.Fatal(err)
	}
	lost := 0
	for _, a := range w.acks {
		if !present[a.N] {
			lost++
		}
	}
	w.c.T.Logf("acknowledged %d, lost %d, errors %d", len(w.acks), lost, len(w.errors))
	if lost > 0 {
		w.c.T.Errorf("%s lacks %d of %d acknowledged writes", p.Name, lost, len(w.acks))
	}
}
