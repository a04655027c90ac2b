package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// level is one verb of the path with the flags that belong to it.
type level struct {
	verb  string
	known []cli.Flag
	flags []string
}

// arrange puts every flag behind the verb that defines it, so that flags may stand anywhere: the library wants them before arguments, and
// global ones before the verb. A flag at the end that lacks its value is an error here, or it would take the next word it is put before.
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) == 0 {
		return args, nil
	}
	levels := []level{{verb: args[0], known: app.Flags}}
	commands := app.Commands
	var positional []string
	for rest := args[1:]; len(rest) > 0; {
		arg := rest[0]
		rest = rest[1:]
		if arg == "--" {
			positional = append(positional, rest...)
			break
		}
		if len(arg) > 1 && arg[0] == '-' {
			at, takes := owner(levels, arg)
			at.flags = append(at.flags, arg)
			if takes {
				if len(rest) == 0 {
					return nil, usageError("flag %s needs a value: see 'matriarch --help'", arg)
				}
				at.flags = append(at.flags, rest[0])
				rest = rest[1:]
			}
			continue
		}
		if c := find(commands, arg); c != nil && len(positional) == 0 {
			levels, commands = append(levels, level{verb: arg, known: c.Flags}), c.Subcommands
			continue
		}
		positional = append(positional, arg)
	}
	var out []string
	for _, l := range levels {
		out = append(append(out, l.verb), l.flags...)
	}
	if slices.ContainsFunc(positional, func(s string) bool { return strings.HasPrefix(s, "-") }) {
		out = append(out, "--")
	}
	return append(out, positional...), nil
}

// owner finds the level of a flag, the innermost first, and whether its value is the next argument. An unknown flag is left to the
// innermost, which complains.
func owner(levels []level, arg string) (at *level, takesNext bool) {
	name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	for i := len(levels) - 1; i >= 0; i-- {
		for _, f := range levels[i].known {
			if slices.Contains(f.Names(), name) {
				d, ok := f.(cli.DocGenerationFlag)
				return &levels[i], ok && d.TakesValue() && !hasValue
			}
		}
	}
	return &levels[len(levels)-1], false
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
