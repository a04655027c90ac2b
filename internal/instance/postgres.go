package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
	"matriarch/pgmanager"
	"matriarch/pgmanager/pgconf"
)

// Postgres implements agent.Postgres on a pgmanager.Manager.
type Postgres struct {
	m        *pgmanager.Manager
	cfg      pgmanager.Config
	security func() fsm.LinkSecurity // how a link to another server proves itself now
	sentinel *Sentinel
	log      *slog.Logger

	mu      sync.Mutex
	applied decide.Conf              // what Configure wrote last
	loaded  bool                     // and the server was seen to go by it
	unarmed bool                     // commits did not wait for anybody before that, and some may still not
	copied  atomic.Pointer[[2]int64] // of the clone under way, and of how many bytes
	logMark int64                    // size of PostgreSQL's log then
	slots   slotBox
}

// NewPostgres wraps a manager, whose server the sentinel is parent of. security tells how links prove themselves.
func NewPostgres(m *pgmanager.Manager, cfg pgmanager.Config, sentinel *Sentinel, security func() fsm.LinkSecurity, log *slog.Logger) *Postgres {
	return &Postgres{m: m, cfg: cfg, sentinel: sentinel, security: security, log: log}
}

// Local implements agent.Postgres.
func (p *Postgres) Local() (decide.Local, error) {
	l, err := p.m.Local()
	if err != nil {
		return decide.Local{}, err
	}
	d := decide.Local{HasData: p.m.HasData(), Promise: l.Promise, Lineage: l.Lineage, Word: l.Word}
	if l.Unfinished != nil {
		d.Unfinished = "unfinished " + l.Unfinished.Kind
		if l.Unfinished.Why != "" {
			d.Unfinished += " (" + l.Unfinished.Why + ")"
		}
	}
	if d.HasData {
		if d.SystemID, err = p.m.SystemID(); err != nil {
			return d, err
		}
	}
	if pid, ok := p.m.RunningPostmaster(); ok && pid != p.sentinel.Status().Postmaster {
		d.Stray = true
	}
	return d, nil
}

// Prepare implements agent.Postgres.
func (p *Postgres) Prepare(ctx context.Context, r agent.Roster, c decide.Conf) error {
	p.copySlots(ctx, r)
	w, err := p.wanted(r, c)
	if err != nil {
		return err
	}
	if _, err := p.m.Apply(w); err != nil {
		return err
	}
	p.remember(c)
	return nil
}

// Configure implements agent.Postgres.
func (p *Postgres) Configure(ctx context.Context, r agent.Roster, c decide.Conf) error {
	w, err := p.wanted(r, c)
	if err != nil {
		return err
	}
	p.mu.Lock()
	leaving := c.Upstream == "" && p.applied.Upstream != ""
	same := p.loaded && p.applied.Equal(c)
	p.unarmed = p.unarmed || (c.Sync.K > 0 && p.applied.Epoch == c.Epoch && p.applied.Upstream == "" && p.applied.Sync.K == 0)
	p.mu.Unlock()
	if leaving {
		err = p.m.ClearUpstream(ctx, w)
	} else {
		var changed bool
		if changed, err = p.m.Apply(w); err == nil && (changed || !same) {
			err = p.m.Reload(ctx)
		}
	}
	if err != nil {
		p.remember(decide.Conf{}) // whatever it is set to now must be looked at again
		return err
	}
	p.remember(c)
	p.mu.Lock()
	p.loaded = true
	p.mu.Unlock()
	return nil
}

// Applied implements agent.Postgres.
func (p *Postgres) Applied() decide.Conf {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.loaded {
		return decide.Conf{}
	}
	return p.applied
}

func (p *Postgres) remember(c decide.Conf) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied, p.loaded, p.logMark = c, false, logSize(p.cfg.LogFile)
}

// wanted translates into PostgreSQL's terms.
func (p *Postgres) wanted(r agent.Roster, c decide.Conf) (pgmanager.Conf, error) {
	how := pgconf.Security(r.Security)
	w := pgmanager.Conf{
		Phase: phases[c.Phase], SyncNames: syncNames(c), Databases: len(r.Databases), Links: c.Links, Security: how, Pooled: r.Pooled,
		Nodes: hosts(r.Members), Standbys: hosts(r.Members),
	}
	if p.cfg.Citus {
		w.Nodes = hosts(r.Nodes)
	}
	major := p.m.Tools().Version.Major()
	w.Parameters = slotParameters(c, major)
	w.SlotSync = c.Logical && major*10000 >= decide.FailoverSlots
	if c.Upstream == "" {
		return w, nil
	}
	for _, n := range r.Members {
		if n.ID != c.Upstream {
			continue
		}
		host, port, err := splitAddress(n.Postgres)
		if err != nil {
			return w, err
		}
		pass, err := p.m.WriteCredential(c.Epoch, how)
		if err != nil {
			return w, err
		}
		w.Upstream = &pgmanager.Upstream{
			Host: host, Port: port, AppName: pgconf.AppName(r.Self, c.Epoch), Slot: pgconf.SlotName(r.Self), PassFile: pass, Epoch: c.Epoch,
			Security: how,
		}
		if w.SlotSync {
			w.Upstream.Database = pgmanager.MaintenanceDB
		}
		return w, nil
	}
	return w, fmt.Errorf("follow %s: it is not a member of the group", c.Upstream)
}

var phases = map[decide.Phase]pgconf.Phase{decide.Closed: pgconf.Closed, decide.Members: pgconf.Members, decide.Open: pgconf.Open}

// nobody is a name that no standby has.
const nobody = "m_nobody"

// syncNames renders the pair. Backends wait for standbys only once the checkpointer has seen that there are names, which a long
// checkpoint puts off: so a server that is not primary has a name already, nobody's, and needs no such moment when promoted.
func syncNames(c decide.Conf) string {
	if primary := c.Upstream == "" && !c.Epoch.IsZero(); !primary {
		return pgconf.SyncNames(1, []string{nobody})
	}
	ids, render := c.Sync.S, pgconf.SyncNames
	if c.Order != nil {
		ids, render = c.Order, pgconf.FirstSyncNames
	}
	var names []string
	for _, id := range ids {
		names = append(names, pgconf.AppName(id, c.Epoch))
	}
	if len(names) == 0 { // without a name nobody would wait, whatever K
		names = []string{nobody}
	}
	return render(c.Sync.K, names)
}

func hosts(nodes []fsm.Node) []string {
	var out []string
	seen := map[string]bool{}
	for _, n := range nodes {
		host, _, err := net.SplitHostPort(n.Postgres)
		if err != nil {
			continue
		}
		if ip := net.ParseIP(host); ip != nil && ip.To4() != nil && ip.IsLoopback() {
			host = "127.0.0.0/8" // nodes that share a machine: their connections leave from any of these
		}
		if !seen[host] {
			seen[host] = true
			out = append(out, host)
		}
	}
	return out
}

// Promise implements agent.Postgres: durable first, then the credential, then the setting, then the process.
func (p *Postgres) Promise(ctx context.Context, r agent.Roster, e fsm.Epoch) error {
	if err := p.m.Promise(e); err != nil {
		return err
	}
	if err := p.m.DropCredentialsBelow(e); err != nil {
		return err
	}
	o := p.m.Observe(ctx)
	if !o.Reachable {
		return fmt.Errorf("PostgreSQL does not answer: %s", o.Reason)
	}
	now := p.effective(r, o)
	if now.Upstream != "" && !now.Epoch.Less(e) {
		return nil // follows the promised epoch already
	}
	c := decide.Conf{Phase: now.Phase}
	w, err := p.wanted(r, c)
	if err != nil {
		return err
	}
	if err := p.m.ClearUpstream(ctx, w); err != nil {
		return err
	}
	p.remember(c)
	return nil
}

const (
	settlePoll = 10 * time.Millisecond
	// settleFor is longer than wal_retrieve_retry_interval: the startup process has looked everywhere once more.
	settleFor = 150 * time.Millisecond
)

// Settle implements agent.Postgres. Nothing is received any more; what was flushed must be replayed. That is proved at once
// when replay has reached what was received, and else by standing still for longer than the startup process rests.
func (p *Postgres) Settle(ctx context.Context) (fsm.Timeline, fsm.LSN, error) {
	var at fsm.LSN
	var since time.Time
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		o := p.m.Observe(ctx)
		switch {
		case !o.Reachable:
			return 0, 0, fmt.Errorf("PostgreSQL does not answer: %s", o.Reason)
		case !o.InRecovery:
			return 0, 0, errors.New("it is not a standby")
		case o.ReplayPaused:
			if err := p.m.ResumeReplay(ctx); err != nil {
				return 0, 0, err
			}
		case o.Receiver == nil && o.Settled && o.ReplayLSN == o.ReceiveLSN && o.ReplayLSN%segmentSize != 0:
			return o.Timeline, o.ReplayLSN, nil
		case o.Receiver != nil || !o.Settled || o.ReplayLSN != at:
			at, since = o.ReplayLSN, time.Now()
		case time.Since(since) >= settleFor:
			return o.Timeline, o.ReplayLSN, nil
		}
		select {
		case <-ctx.Done():
			return 0, 0, fmt.Errorf("still replaying, at %s of %s: %w", o.ReplayLSN, o.ReceiveLSN, ctx.Err())
		case <-tick.C:
		}
	}
}

// segmentSize is the smallest WAL segment: a new receiver starts at the beginning of one, so that equality there proves
// nothing.
const segmentSize = 1 << 20

// SetLineage implements agent.Postgres.
func (p *Postgres) SetLineage(made map[fsm.Timeline]fsm.Epoch) error { return p.m.SetLineage(made) }

// SetWord implements agent.Postgres.
func (p *Postgres) SetWord(length time.Duration) error { return p.m.SetWord(length) }

// Promoted implements agent.Postgres.
func (p *Postgres) Promoted(ctx context.Context) (tl, parent fsm.Timeline, fork fsm.LSN, err error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		o := p.m.Observe(ctx)
		if o.Reachable && !o.InRecovery {
			return p.m.PromotionPoint(ctx)
		}
		if !o.Running {
			return 0, 0, 0, errors.New("PostgreSQL ended during the promotion: see its log " + p.cfg.LogFile)
		}
		select {
		case <-ctx.Done():
			return 0, 0, 0, fmt.Errorf("promotion still replays, at %s: %w", o.ReplayLSN, ctx.Err())
		case <-tick.C:
		}
	}
}

// Origin implements agent.Postgres.
func (p *Postgres) Origin(_ context.Context, tl fsm.Timeline) (fsm.Timeline, fsm.LSN, error) {
	h, err := p.m.History(tl)
	if err != nil {
		return 0, 0, err
	}
	from, ok := h.Parent()
	if !ok {
		return 0, 0, fmt.Errorf("the data directory has no history of timeline %d", tl)
	}
	return from.Timeline, from.End, nil
}

// Ended implements agent.Postgres.
func (p *Postgres) Ended(ctx context.Context) (fsm.Timeline, fsm.LSN, bool, error) {
	return p.m.Ended(ctx)
}

// EndSenders implements agent.Postgres.
func (p *Postgres) EndSenders(ctx context.Context) error { return p.m.EndSenders(ctx) }

// FirstCommit implements agent.Postgres.
func (p *Postgres) FirstCommit(ctx context.Context, e fsm.Epoch) error {
	_, err := p.m.FirstCommit(ctx, e)
	return err
}

// Equip implements agent.Postgres.
func (p *Postgres) Equip(ctx context.Context, r agent.Roster) error {
	if err := p.m.EnsureRoles(ctx); err != nil {
		return err
	}
	for _, db := range r.Databases {
		if err := p.m.EnsureDatabase(ctx, db); err != nil {
			return err
		}
	}
	return nil
}

// setAside lists the data directories kept beside the present one, and the log saved before rewinds.
func setAside(dataDir, runDir string) []string {
	plain := strings.NewReplacer("*", `\*`, "?", `\?`, "[", `\[`)
	dirs, _ := filepath.Glob(plain.Replace(dataDir) + ".set-aside-*")
	logs, _ := filepath.Glob(plain.Replace(runDir) + "/set-aside/*")
	return append(dirs, logs...)
}
