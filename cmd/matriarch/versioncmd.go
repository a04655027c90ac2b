package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
)

func (p *program) versionVerb() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print the version of this binary", Category: "Look",
		Description: "Prints the version and the newest log entry that it understands.\nExample:\n   matriarch version --output json",
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			v := struct {
				Version  string `json:"version"`
				Protocol int    `json:"protocol"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{version, fsm.Protocol, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return emit(c, v, func(w io.Writer) {
				fmt.Fprintf(w, "matriarch %s (protocol %d, %s, %s)\n", v.Version, v.Protocol, v.Go, v.Platform)
			})
		},
	}
}
