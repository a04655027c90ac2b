package instance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/pgmanager"
	"matriarch/pgmanager/pgconf"
)

// InitDB implements agent.Postgres.
func (p *Postgres) InitDB(ctx context.Context) error {
	_, err := p.m.InitDB(ctx)
	return err
}

// Identify implements agent.Postgres.
func (p *Postgres) Identify(ctx context.Context) (string, fsm.Timeline, error) {
	c, err := p.m.ControlData(ctx)
	if err != nil {
		return "", 0, err
	}
	return c.SystemID, c.LastTimeline(), nil
}

// Clone implements agent.Postgres.
func (p *Postgres) Clone(ctx context.Context, from fsm.Node, epoch fsm.Epoch, lineage map[fsm.Timeline]fsm.Epoch, prefix bool) error {
	up, err := p.source(from, epoch)
	if err != nil {
		return err
	}
	up.Lineage = lineage
	defer p.copied.Store(nil)
	return p.m.Clone(ctx, up, prefix, func(done, total int64) { p.copied.Store(&[2]int64{done, total}) })
}

// Progress implements agent.Postgres.
func (p *Postgres) Progress() (copied, size int64) {
	if c := p.copied.Load(); c != nil {
		return c[0], c[1]
	}
	return 0, 0
}

// CloneRoom reports why a clone of the node could not be made now, before anything is touched.
func (p *Postgres) CloneRoom(ctx context.Context, from fsm.Node) error {
	up, err := p.source(from, fsm.Epoch{})
	if err != nil {
		return err
	}
	return p.m.CloneRoom(ctx, up)
}

// Rewind implements agent.Postgres.
func (p *Postgres) Rewind(ctx context.Context, from fsm.Node, epoch fsm.Epoch, lineage map[fsm.Timeline]fsm.Epoch, fork fsm.LSN) error {
	up, err := p.source(from, epoch)
	if err != nil {
		return err
	}
	up.Lineage = lineage
	return p.m.Rewind(ctx, up, fork, func(ctx context.Context) error { return p.catchUp(ctx, from, up) })
}

// catchUp starts a rewound server, which nobody may enter yet, and waits until it has what it lacks. Its name is not one that
// confirms commits. When that fails the server is stopped: what it holds is of no use.
func (p *Postgres) catchUp(ctx context.Context, from fsm.Node, up pgmanager.Upstream) (err error) {
	pass, err := p.m.WriteCredential(up.Epoch, up.Security)
	if err != nil {
		return err
	}
	up.AppName, up.PassFile = "matriarch_rewound", pass
	if _, err := p.m.Apply(pgmanager.Conf{Phase: pgconf.Closed, Upstream: &up, Security: up.Security}); err != nil {
		return err
	}
	p.remember(decide.Conf{Phase: decide.Closed, Upstream: from.ID, Epoch: up.Epoch})
	if err := p.sentinel.Start(ctx); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*immediateStop)
		defer cancel()
		err = errors.Join(err, p.sentinel.Stop(sctx, true))
	}()
	return p.answering(ctx)
}

// answering waits until the server lets its manager in.
func (p *Postgres) answering(ctx context.Context) error {
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		o := p.m.Observe(ctx)
		if o.Reachable {
			return nil
		}
		st, err := p.sentinel.Ping(ctx)
		if err != nil {
			return err
		}
		if err := p.hopeless(st.Postmaster); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not answer: %s: %w", o.Reason, ctx.Err())
		case <-tick.C:
		}
	}
}

// hopeless says why a server that does not answer yet never will.
func (p *Postgres) hopeless(postmaster int) error {
	switch {
	case postmaster == 0:
		return errors.New("PostgreSQL ended: see its log " + p.cfg.LogFile)
	case p.walRemoved():
		return errors.New("the source has removed the log that PostgreSQL needs to replay: see its log " + p.cfg.LogFile)
	}
	return nil
}

func (p *Postgres) source(from fsm.Node, epoch fsm.Epoch) (pgmanager.Upstream, error) {
	host, port, err := splitAddress(from.Postgres)
	if err != nil {
		return pgmanager.Upstream{}, err
	}
	return pgmanager.Upstream{Host: host, Port: port, Epoch: epoch, Security: pgconf.Security(p.security())}, nil
}

func splitAddress(addr string) (string, int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("address %q of PostgreSQL: %w", addr, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return "", 0, fmt.Errorf("address %q of PostgreSQL: %w", addr, err)
	}
	return host, n, nil
}
