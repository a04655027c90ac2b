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

	"github.com/coreos/go-systemd/v22/daemon"
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
			"and nobody notices. SIGINT stops PostgreSQL in good order first.\nExample: matriarch run --config /etc/matriarch/matriarch.yml",
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

const stopLimit = 90 * time.Second

// serve runs the node until a signal. Only SIGINT ends PostgreSQL as well.
func serve(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	// Little is live and little is allocated at rest: a smaller heap costs hardly any time.
	debug.SetGCPercent(40)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	go func() {
		select {
		case s := <-signals:
			cancel(signalled{s})
		case <-ctx.Done():
		}
	}()
	if err := slacken(); err != nil {
		log.Debug("timers stay as punctual as they are", "error", err)
	}
	n, err := wire(ctx, cfg, log)
	if err != nil {
		return err
	}
	log.Info("node runs", "node", n.id.Name, "group", cfg.Node.Group, "version", version, "peer", cfg.Advertise, "api", cfg.API.Listen)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	err = n.run(ctx)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
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

// signalled is why a run ended.
type signalled struct{ os.Signal }

func (s signalled) Error() string { return fmt.Sprintf("signal %s", s.Signal) }
