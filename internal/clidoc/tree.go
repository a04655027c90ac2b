package clidoc

import (
	"cmp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// verb is one node of the tree, with what people see of it.
type verb struct {
	path        []string // without the program's name; empty for the program itself
	usage       string
	argsUsage   string
	category    string
	description string
	flags       []option
	children    []verb
}

// option is one flag.
type option struct {
	names  []string // without dashes, the long one first
	value  string   // placeholder of its value; empty: it takes none
	usage  string
	preset string   // default, as text
	env    []string // variables that set it
}

func treeOf(app *cli.App) verb {
	root := verb{usage: app.Usage, description: app.Description, flags: options(app.Flags)}
	root.children = children(nil, app.Commands)
	return root
}

func children(parent []string, commands []*cli.Command) []verb {
	var out []verb
	for _, c := range commands {
		if c.Hidden {
			continue
		}
		path := append(slices.Clone(parent), c.Name)
		out = append(out, verb{
			path: path, usage: c.Usage, argsUsage: c.ArgsUsage, category: c.Category, description: c.Description,
			flags: options(c.Flags), children: children(path, c.Subcommands),
		})
	}
	slices.SortFunc(out, func(a, b verb) int { return cmp.Compare(a.name(), b.name()) })
	return out
}

func options(flags []cli.Flag) []option {
	var out []option
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if v, can := f.(cli.VisibleFlag); !ok || (can && !v.IsVisible()) {
			continue
		}
		o := option{names: slices.Clone(f.Names()), env: d.GetEnvVars()}
		slices.SortStableFunc(o.names, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
		o.value, o.usage = unquote(d.GetUsage())
		if !d.TakesValue() {
			o.value = ""
		} else {
			o.value, o.preset = cmp.Or(o.value, strings.ToUpper(o.names[0])), d.GetDefaultText()
		}
		out = append(out, o)
	}
	return out
}

// unquote finds the placeholder that a usage names between backquotes.
func unquote(usage string) (placeholder, text string) {
	before, rest, ok := strings.Cut(usage, "`")
	if !ok {
		return "", usage
	}
	placeholder, after, _ := strings.Cut(rest, "`")
	return placeholder, before + placeholder + after
}

func (v verb) name() string {
	if len(v.path) == 0 {
		return ""
	}
	return v.path[len(v.path)-1]
}

// walk visits v and everything under it, parents first.
func (v verb) walk(visit func(verb)) {
	visit(v)
	for _, c := range v.children {
		c.walk(visit)
	}
}

// dashed is a flag's name as people type it.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}
