package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"matriarch/citus"
	"matriarch/consensus"
	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/admin"
	"matriarch/internal/agent"
	"matriarch/internal/api"
	"matriarch/internal/certificates"
	"matriarch/internal/conductor"
	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/internal/instance"
	"matriarch/internal/obs"
	"matriarch/internal/proxy"
	"matriarch/pgmanager"
	"matriarch/pgmanager/fence"
	"matriarch/transport"
)

// node is the whole of one running matriarch. Parts are made in the order of their dependence and ended in reverse.
type node struct {
	cfg config.Config
	dir identity.Dir
	id  identity.Identity
	log *slog.Logger

	tls       *transport.NodeTLS
	mux       *transport.Mux
	rpc       *transport.RPCServer
	client    *transport.Client
	join      *transport.JoinServer
	pg        *pgmanager.Manager
	consensus *consensus.Node
	sentinel  *instance.Sentinel
	postgres  *instance.Postgres
	agent     *agent.Agent
	conductor *conductor.Conductor
	citus     *citus.Pool // nil without Citus
	api       *api.Server
	apiPort   net.Listener
	metrics   *obs.Metrics
	events    *obs.Events
	proxy     *proxy.Proxy // nil without one
	roles     *roles       // nil without a proxy

	certs *certificates.Keeper
	joins joins

	changed chan struct{}                        // the nodes of the state moved: peers.json is written anew
	leaving atomic.Bool                          // this run ends: no commit shall wait for this node any more
	service service                              // systemd, if it is the parent
	leading atomic.Pointer[consensus.Leadership] // while this node leads
}

// wire makes a node. Nothing outside its own folders is changed, and nothing runs yet but the sentinel.
func wire(ctx context.Context, cfg config.Config, log *slog.Logger) (n *node, err error) {
	n = &node{cfg: cfg, dir: identity.Dir(cfg.StateDir), log: log, changed: make(chan struct{}, 1), service: newService(log)}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.id, err = n.dir.Load(); err != nil {
		return n, err
	}
	n.metrics = obs.NewMetrics(n.id.ClusterID, n.id.Name, version)
	n.events = obs.NewEvents(log, n.metrics, 200)
	pgcfg, err := postgresConfig(cfg, n.dir)
	if err != nil {
		return n, err
	}
	if n.pg, err = pgmanager.New(pgcfg, log); err != nil {
		return n, err
	}
	if staged, err := n.dir.StagedSecret(identity.Superuser); err != nil {
		return n, err
	} else if staged != "" { // a change of the passwords was interrupted
		n.pg.StagePasswords(staged)
	}
	if err := n.pg.CheckData(); err != nil {
		return n, err
	}
	if err := errors.Join(n.openAPI(), n.network()); err != nil {
		return n, err
	}
	if err := n.certificates(ctx, pgcfg); err != nil {
		return n, err
	}
	if err := n.openProxy(); err != nil {
		return n, err
	}
	if err := n.controlPlane(); err != nil {
		return n, err
	}
	if err := n.hands(ctx, pgcfg); err != nil {
		return n, err
	}
	n.conductor = conductor.New(conductor.Config{Recruiter: recruiter{n}, Metadata: n.metadata(pgcfg), Planner: planner{n}, Log: log, Decided: n.groupDecided})
	n.services()
	return n, nil
}

// openAPI opens the HTTP port; it is served later.
func (n *node) openAPI() (err error) {
	n.apiPort, err = net.Listen("tcp", n.cfg.API.Listen) //nolint:noctx // an address to listen on needs no waiting for
	if err != nil {
		return portInUse(err, "api.listen", n.cfg.API.Listen)
	}
	access, err := apiAccess(n.cfg.API)
	if err != nil {
		return err
	}
	access.Revoked = n.revoked
	cfg := api.Config{Source: source{n}, Metrics: n.metrics, Log: n.log, Access: access, Writer: source{n}}
	if n.cfg.API.TLS == "on" {
		cfg.TLS = apiTLS(n.cfg.API, n.pg.TLSPaths().Server, n.log)
	}
	n.api = api.New(cfg)
	return nil
}

// network opens the peer port.
func (n *node) network() error {
	tls, err := n.dir.TLS()
	if err != nil {
		return err
	}
	n.tls = tls
	netw := transport.TCP{Source: sourceIP(n.cfg.Listen)}
	n.mux, err = transport.Listen(netw, n.cfg.Listen, transport.ServerConfig{Identity: tls, Log: n.log, Allow: n.allow})
	if err != nil {
		return portInUse(err, "listen", n.cfg.Listen)
	}
	dialer := &transport.Dialer{Network: netw, Identity: tls}
	n.client = transport.NewClient(dialer)
	n.rpc = transport.NewRPCServer(n.log)
	n.rpc.Guard(n.mayCall)
	n.join = transport.NewJoinServer(n.log, n.admit)
	n.consensus, err = consensus.Open(consensus.Config{
		ID: n.id.NodeID, Name: n.id.Name, Advertise: n.cfg.Advertise, Dir: n.cfg.RaftDir, Seeds: n.seeds(),
		Mux: n.mux, Dialer: dialer, RPC: n.rpc, Client: n.client, Clock: clock, Log: n.log,
		OnChange: n.stateChanged, OnTick: n.metrics.Tick, Lead: n.lead,
	})
	return err
}

// seeds are the last known addresses of the other nodes.
func (n *node) seeds() map[fsm.NodeID]string {
	out := map[fsm.NodeID]string{}
	peers, err := n.dir.Peers()
	if err != nil {
		n.log.Warn("last known peers not read", "error", err)
	}
	for _, p := range peers {
		out[p.ID] = p.Addr
	}
	return out
}

// controlPlane carries out a bootstrap that was asked for.
func (n *node) controlPlane() error {
	first, pending, err := loadBootstrap(n.dir)
	if err != nil || !pending {
		return err
	}
	if err := n.consensus.Bootstrap(first); err != nil && !errors.Is(err, consensus.ErrBootstrapped) {
		return err
	}
	return dropBootstrap(n.dir)
}

// hands connects to the sentinel, or starts one, and makes the agent.
func (n *node) hands(ctx context.Context, pgcfg pgmanager.Config) (err error) {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find our own program: %w", err)
	}
	spawn := fence.SpawnConfig{
		Executable: exe, Args: []string{"sentinel", "--socket", n.cfg.Sentinel.Socket},
		LogFile: filepath.Join(n.cfg.StateDir, "sentinel.log"), Socket: n.cfg.Sentinel.Socket,
	}
	n.sentinel, err = instance.OpenSentinel(ctx, instance.SentinelConfig{
		Spawn: spawn, DataDir: pgcfg.DataDir, Log: n.log,
		Watchdog: fence.WatchdogRequest{Mode: fence.WatchdogMode(n.cfg.Sentinel.Watchdog), Device: n.cfg.Sentinel.WatchdogDevice},
	}, n.pg)
	if err != nil {
		return err
	}
	n.postgres = instance.NewPostgres(n.pg, pgcfg, n.sentinel, n.linkSecurity, n.log)
	n.agent = agent.New(agent.Config{
		Self: n.id.NodeID, Control: control{n.consensus}, Postgres: n.postgres, Sentinel: n.sentinel, Peers: peers{n}, Clock: clock,
		Hooks: instance.NewHooks(ctx, n.cfg.Hooks, n.pg, n.log), Log: n.log, Decided: n.nodeDecided, Alive: n.service.alive,
	})
	return nil
}

// services registers what other nodes and the command line may call.
func (n *node) services() {
	transport.Register(n.rpc, "recruit", func(ctx context.Context, _ transport.Peer, r recruitRequest) (recruitAnswer, error) {
		rec, err := n.agent.Recruit(ctx, r.Epoch)
		return recruitAnswer{rec}, err
	})
	transport.Register(n.rpc, callWriteOut, func(ctx context.Context, _ transport.Peer, _ struct{}) (position, error) { return n.writeOut(ctx) })
	transport.Register(n.rpc, callWaitOpen, func(ctx context.Context, _ transport.Peer, r recruitRequest) (struct{}, error) {
		return struct{}{}, n.agent.WaitOpen(ctx, r.Epoch)
	})
	transport.Register(n.rpc, callProbe, func(ctx context.Context, _ transport.Peer, r probeRequest) (decide.Probe, error) {
		return n.probe(ctx, r)
	})
	transport.Register(n.rpc, callWord, n.giveWord)
	transport.Register(n.rpc, callRemoved, n.tellRemoved)
	transport.Register(n.rpc, admin.CallSupport, n.support)
	admin.Register(n.rpc, source{n})
}

// run serves until ctx ends, something breaks, or the node is removed.
func (n *node) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.rpc.Serve(n.mux.Listener(transport.KindRPC)) })
	g.Go(func() error { return n.join.Serve(n.mux.Listener(transport.KindJoin)) })
	g.Go(func() error { return n.api.Serve(n.apiPort) })
	g.Go(func() error { return n.keepPeers(ctx) })
	g.Go(func() error { return n.announceStart(ctx) })
	g.Go(func() error { return n.learnRemoval(ctx) })
	g.Go(func() error { return n.rebalanceAsked(ctx) })
	g.Go(func() error { return n.settle(ctx) })
	g.Go(func() error { return n.certs.Run(ctx) })
	if n.proxy != nil {
		g.Go(func() error { return n.roles.run(ctx) })
		g.Go(func() error { return n.proxy.Run(ctx) })
	}
	raftCtx, endRaft := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error {
		defer n.endServing()
		return n.consensus.Run(raftCtx)
	})
	g.Go(func() error {
		defer endRaft() // the agent goes first, so that its last words are still carried
		err := n.agent.Run(ctx)
		if s, ok := errors.AsType[signalled](context.Cause(ctx)); ok && s.Signal == syscall.SIGINT {
			err = errors.Join(ignoreCanceled(err), n.stopPostgres())
		}
		return err
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-n.sentinel.Taken():
			return errors.New("another matriarch on this host has taken over the sentinel: this one ends")
		}
	})
	return ignoreCanceled(g.Wait())
}

// settle gives start-up's memory back once the node has found its place.
func (n *node) settle(ctx context.Context) error {
	t := time.NewTimer(settleAfter)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
		if _, err := dropStartup(); err != nil {
			n.log.Debug("start-up's memory not given back", "error", err)
		}
		debug.FreeOSMemory()
	}
	return nil
}

const settleAfter = 15 * time.Second

// stopPostgres stops PostgreSQL in good order, gives the lease back and ends the sentinel.
func (n *node) stopPostgres() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if err := n.agent.Stop(ctx, orderlyLimit); err != nil {
		n.log.Warn("not everything could be ended in good order", "error", err)
	}
	return n.sentinel.Shutdown(ctx)
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// endServing lets the servers return.
func (n *node) endServing() {
	_ = n.api.Close()
	_ = n.join.Close()
	_ = n.rpc.Close()
	_ = n.mux.Close()
}

// close ends what wire began. PostgreSQL and the sentinel stay.
func (n *node) close() error {
	var errs []error
	if n.api != nil {
		errs = append(errs, n.api.Close(), ignoreClosed(n.apiPort.Close()))
	}
	if n.citus != nil {
		n.citus.Close()
	}
	if n.sentinel != nil {
		errs = append(errs, ignoreClosed(n.sentinel.Close()))
	}
	if n.consensus != nil {
		errs = append(errs, n.consensus.Close())
	}
	if n.client != nil {
		n.client.Close()
	}
	if n.mux != nil {
		errs = append(errs, n.mux.Close())
	}
	if n.pg != nil {
		n.pg.Close()
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// lead runs while this node is the Raft leader.
func (n *node) lead(ctx context.Context, l consensus.Leadership) {
	n.metrics.Election()
	n.leading.Store(&l)
	defer n.leading.Store(nil)
	n.conductor.Run(ctx, leadership{l})
}

func clock() lease.Stamp {
	s := fence.Clock()
	return lease.Stamp{Raw: s.Raw, Boot: s.Boot}
}

// allow keeps removed nodes out of Raft and gossip. Connections for calls stay open to them, for the one by which they learn it.
func (n *node) allow(k transport.Kind, p transport.Peer) error {
	if k != transport.KindRaft && k != transport.KindGossip {
		return nil
	}
	return n.stays(p)
}

// mayCall leaves one call to removed nodes.
func (n *node) mayCall(from transport.Peer, call string) error {
	if call == callRemoved {
		return nil
	}
	return n.stays(from)
}

func (n *node) stays(p transport.Peer) error {
	if n.consensus == nil {
		return nil
	}
	if _, gone := n.consensus.State().Removed[fsm.NodeID(p.NodeID)]; gone {
		return errors.New("this node was removed from the cluster for good")
	}
	return nil
}
