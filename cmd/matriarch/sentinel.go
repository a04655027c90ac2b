package main

import (
	"github.com/urfave/cli/v2"

	"matriarch/pgmanager/fence"
)

func sentinelVerb() *cli.Command {
	return &cli.Command{
		Name:  "sentinel",
		Usage: "be the parent of PostgreSQL (started by run, not by hand)",
		Description: "A small process that survives restarts and upgrades of matriarch, starts PostgreSQL as a standby only, promotes under a valid lease and kills at its end.\n" +
			"Example: matriarch sentinel --socket /var/lib/matriarch/sentinel.sock",
		Flags: []cli.Flag{&cli.StringFlag{Name: "socket", Usage: "Unix `SOCKET` that the agent connects to", Required: true}},
		Action: func(c *cli.Context) error {
			_, _ = dropStartup() // before its memory is locked
			return fence.Run(c.Context, fence.Config{Socket: c.String("socket"), Version: version})
		},
	}
}
