package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"matriarch/internal/clidoc"
)

func (p *program) completionVerb() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print what makes a shell complete verbs and flags", ArgsUsage: strings.Join(clidoc.Shells(), "|"), Category: "Look",
		Description: "The packages install it already.\nExample:\n   matriarch completion bash > /etc/bash_completion.d/matriarch",
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "SHELL")
			if err != nil {
				return err
			}
			script, ok := clidoc.Completion(p.app(), args[0])
			if !ok {
				return usagef(c, "shell %q must be one of %s", args[0], strings.Join(clidoc.Shells(), ", "))
			}
			_, err = p.out.Write(script)
			return err
		},
	}
}

// manpagesVerb is for the build of the packages only.
func (p *program) manpagesVerb() *cli.Command {
	return &cli.Command{
		Name: "manpages", Usage: "write the man pages", ArgsUsage: "DIR", Category: "Look", Hidden: true,
		Description: "Writes one page a verb into an existing directory.\nExample:\n   matriarch manpages man/",
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "DIR")
			if err != nil {
				return err
			}
			for name, page := range clidoc.ManPages(p.app(), version) {
				if err := os.WriteFile(filepath.Join(args[0], name), page, 0o644); err != nil { //nolint:gosec // for everybody to read
					return fmt.Errorf("write man pages: %w", err)
				}
			}
			return nil
		},
	}
}
