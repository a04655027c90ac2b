package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/internal/agent"
	"matriarch/internal/config"
	"matriarch/internal/obs"
)

func runVerb() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "run this node",
		Description: "Runs until it is told to end. SIGTERM ends matriarch and leaves PostgreSQL running under its sentinel: start matriarch again within three seconds " +
			"and nobody notices. SIGINT ends the whole node in good order: a primary is handed over first (stop.handover_timeout), then PostgreSQL is stopped.\nExample: matriarch run --config /etc/matriarch/matriarch.yml",
		Action: func(c *cli.Context) error {
			cfg, err := config.Load(c.String("config"))
			if err != nil {
				return err
			}
			log, _, err := obs.NewLogger(c.App.ErrWriter, obs.LogOptions{Level: cfg.Log.Level, Format: cfg.Log.Format})
			if err != nil {
				return err
			}
			return serve(c.Context, cfg, log)
		},
	}
}

// Limits of an orderly end after the handover. TimeoutStopSec of the unit is longer than all of them together.
const (
	stopLimit    = 90 * time.Second
	orderlyLimit = 75 * time.Second // then PostgreSQL is stopped at once
)

// serve runs the node until a signal. Only SIGINT ends PostgreSQL as well.
func serve(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	// Little is live and little is allocated at rest: a smaller heap costs hardly any time.
	debug.SetGCPercent(40)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	if err := slacken(); err != nil {
		log.Debug("timers stay as punctual as they are", "error", err)
	}
	n, err := wire(ctx, cfg, log)
	if err != nil {
		return err
	}
	log.Info("node runs", "node", n.id.Name, "group", cfg.Node.Group, "version", version, "peer", cfg.Advertise, "api", cfg.API.Listen)
	n.service.ready()
	go n.obey(ctx, cancel, signals)
	err = n.run(ctx)
	n.service.stopping("ends")
	cause, _ := errors.AsType[signalled](context.Cause(ctx))
	switch {
	case errors.Is(err, agent.ErrRemoved):
		log.Warn("node ends", "reason", err.Error())
		return errors.Join(n.sentinel.Shutdown(context.WithoutCancel(ctx)), n.close()) // it did what it was told
	case cause.Signal == syscall.SIGINT:
		log.Info("node ends, and PostgreSQL with it")
	case cause.Signal != nil:
		log.Info("node ends; PostgreSQL stays under its sentinel", "signal", cause.String())
	}
	return errors.Join(err, n.close())
}

// obey ends ctx with the first signal; SIGINT hands over before, until it is done, takes too long, or another signal comes.
func (n *node) obey(ctx context.Context, end context.CancelCauseFunc, signals <-chan os.Signal) {
	var first os.Signal
	select {
	case first = <-signals:
	case <-ctx.Done():
		return
	}
	if first == syscall.SIGINT {
		n.service.stopping("hands over")
		hctx, cancel := context.WithTimeout(ctx, n.cfg.Stop.HandoverTimeout)
		go func() {
			select {
			case <-signals:
				cancel()
			case <-hctx.Done():
			}
		}()
		n.handOver(hctx)
		cancel()
	}
	end(signalled{first})
}

// signalled is why a run ended.
type signalled struct{ os.Signal }

func (s signalled) Error() string { return fmt.Sprintf("signal %s", s.Signal) }
