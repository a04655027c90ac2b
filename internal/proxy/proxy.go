package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"matriarch/fsm"
)

// Kind says which servers a listener leads to.
type Kind string

// The kinds. Their texts are label values: they never change.
const (
	Coordinator Kind = "coordinator" // the primary of group 0
	Worker      Kind = "worker"      // the primary of any worker group
	Standby     Kind = "standby"     // a standby that may be read from
)

// wanted is the kind in a sentence.
func (k Kind) wanted() string {
	switch k {
	case Coordinator:
		return "the coordinator's primary"
	case Worker:
		return "a worker's primary"
	case Standby:
		return "a standby"
	}
	return string(k)
}

// Target is a server that sessions may go to.
type Target struct {
	Node     fsm.NodeID
	Name     string    // of the node, for people
	Addr     string    // host:port of PostgreSQL
	Epoch    fsm.Epoch // a session ends when its node is listed under another epoch; for standbys leave it zero, so that readers outlive a failover
	Draining bool      // keeps the sessions it has and gets no new ones: about to stop, lagging, or tagged noloadbalance
}

// Source tells who has which role.
type Source interface {
	// Targets lists the servers of a kind at this moment: those that clients may enter, and those that drain.
	Targets(k Kind) []Target
	// Changed returns a channel that is closed when Targets may answer differently from now on.
	Changed() <-chan struct{}
}

// Listener is one port. Zero values mean the default.
type Listener struct {
	Kind           Kind
	Addr           string        // host:port to listen on
	Setting        string        // name of the setting that Addr comes from, for errors; default proxy.KIND
	MaxConns       int           // connections at the same time, waiting ones included; default 1000
	MaxPerClient   int           // of these, from one client address; default no limit
	WaitLimit      time.Duration // longest wait for a server; default 10 s
	ConnectTimeout time.Duration // for one attempt to connect, and for the server's first answer; default 3 s
	StartupTimeout time.Duration // for a client to send the next startup packet; default 10 s
	ProxyProtocol  bool          // every connection begins with a PROXY header of version 2
}

// Config is what a proxy is made of.
type Config struct {
	Listeners []Listener
	Source    Source
	Log       *slog.Logger
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error) // must give TCP connections; default net.Dialer's
	// UserTimeout is how long sent data may stay unacknowledged before a connection is given up, on both sides. Zero leaves it to the
	// system (about 15 minutes). The kernel applies it to a peer that lives but does not read, too: a COPY that waits for a lock, or a client
	// that pages through a result, is cut after this time. So it must exceed the longest such wait.
	UserTimeout time.Duration
}

// Proxy is a set of open ports.
type Proxy struct {
	cfg       Config
	listeners []*listener
}

// New checks the configuration and opens the ports; Run serves them.
func New(cfg Config) (*Proxy, error) {
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	p := &Proxy{cfg: cfg}
	for _, c := range cfg.Listeners {
		l, err := open(c.withDefaults(), cfg)
		if err != nil {
			p.close()
			return nil, err
		}
		p.listeners = append(p.listeners, l)
	}
	return p, nil
}

func (c Listener) withDefaults() Listener {
	defaults := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	defaults(&c.WaitLimit, 10*time.Second)
	defaults(&c.ConnectTimeout, 3*time.Second)
	defaults(&c.StartupTimeout, 10*time.Second)
	if c.MaxConns == 0 {
		c.MaxConns = 1000
	}
	if c.Setting == "" {
		c.Setting = "proxy." + string(c.Kind)
	}
	return c
}

func open(c Listener, cfg Config) (*listener, error) {
	switch {
	case c.Kind != Coordinator && c.Kind != Worker && c.Kind != Standby:
		return nil, fmt.Errorf("open a proxy port: unknown kind %q; use %s, %s or %s", c.Kind, Coordinator, Worker, Standby)
	case c.MaxConns < 0 || c.MaxPerClient < 0 || c.WaitLimit < 0 || c.ConnectTimeout < 0 || c.StartupTimeout < 0 || cfg.UserTimeout < 0:
		return nil, fmt.Errorf("open the %s proxy port: a limit of %s is negative", c.Kind, c.Setting)
	}
	l, err := net.Listen("tcp", c.Addr)
	if err != nil {
		return nil, fmt.Errorf("open the %s proxy port: %w; give %s another address, or stop what uses it", c.Kind, err, c.Setting)
	}
	return &listener{
		Listener: c, tcp: l.(*net.TCPListener), dialer: cfg.Dial, userTimeout: cfg.UserTimeout,
		log: cfg.Log.With("listener", string(c.Kind)), roster: newRoster(), clients: newClients(c.MaxPerClient),
	}, nil
}

func (p *Proxy) close() {
	for _, l := range p.listeners {
		_ = l.tcp.Close()
	}
}

// Run serves until ctx ends, or a port fails for good. When it returns, all connections are closed.
func (p *Proxy) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.refresh()
	var wg sync.WaitGroup
	errs := make([]error, len(p.listeners))
	for i, l := range p.listeners {
		wg.Go(func() {
			defer cancel()
			errs[i] = l.run(ctx)
		})
	}
	wg.Go(func() { p.follow(ctx) })
	<-ctx.Done()
	p.close()
	wg.Wait()
	return errors.Join(errs...)
}

// follow brings each change of the source to the listeners.
func (p *Proxy) follow(ctx context.Context) {
	for {
		changed := p.cfg.Source.Changed()
		p.refresh() // after Changed, so that no change falls between the two
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (p *Proxy) refresh() {
	for _, l := range p.listeners {
		for t, n := range l.roster.update(p.cfg.Source.Targets(l.Kind)) {
			l.log.Info("ended sessions of a server that lost its role", "node", t.Name, "epoch", t.Epoch.String(), "sessions", n)
		}
	}
}
