package clidoc

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// ManPages makes one page a verb, keyed by file name ("matriarch-list.8"), and one for the program. Subverbs are on the page of their verb.
func ManPages(app *cli.App, version string) map[string][]byte {
	root := treeOf(app)
	out := map[string][]byte{app.Name + ".8": programPage(app.Name, root, version)}
	for _, v := range root.children {
		out[pageName(app.Name, v)+".8"] = verbPage(app.Name, root, v, version)
	}
	return out
}

func pageName(program string, v verb) string { return program + "-" + v.path[0] }

func head(b *strings.Builder, name, version, usage string) {
	fmt.Fprintf(b, ".TH %s 8 \"\" \"%s\" \"Matriarch\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(roff(name)), roff("matriarch "+version), roff(name), roff(usage))
}

func programPage(program string, root verb, version string) []byte {
	var b strings.Builder
	head(&b, program, version, root.usage)
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n.I verb\n[\\fIoptions\\fR] [\\fIarguments\\fR]\n", roff(program))
	b.WriteString(".SH DESCRIPTION\n")
	text(&b, "One binary runs on every host of a PostgreSQL and Citus cluster, elects one primary per group, fails over, switches over and keeps the Citus metadata right. "+
		"All verbs that look at a cluster or change it work on any of its hosts.")
	b.WriteString(".SH VERBS\n")
	for _, v := range root.children {
		fmt.Fprintf(&b, ".TP\n\\fB%s\\fR(8)\n%s\n", roff(pageName(program, v)), roff(v.usage))
	}
	b.WriteString(".SH GLOBAL OPTIONS\n")
	flags(&b, root.flags)
	tail(&b)
	return []byte(b.String())
}

func verbPage(program string, root, v verb, version string) []byte {
	var b strings.Builder
	head(&b, pageName(program, v), version, v.usage)
	b.WriteString(".SH SYNOPSIS\n")
	synopsis(&b, program, v)
	b.WriteString(".SH DESCRIPTION\n")
	text(&b, v.description)
	if len(v.flags) > 0 {
		b.WriteString(".SH OPTIONS\n")
		flags(&b, v.flags)
	}
	for _, c := range v.children {
		c.walk(func(s verb) {
			fmt.Fprintf(&b, ".SH %s\n", strings.ToUpper(roff(strings.Join(s.path, " "))))
			synopsis(&b, program, s)
			b.WriteString(".PP\n")
			text(&b, s.usage+".\n"+s.description)
			flags(&b, s.flags)
		})
	}
	b.WriteString(".SH GLOBAL OPTIONS\n")
	flags(&b, root.flags)
	tail(&b)
	fmt.Fprintf(&b, ".SH SEE ALSO\n.BR %s (8)\n", roff(program))
	return []byte(b.String())
}

func tail(b *strings.Builder) {
	b.WriteString(".SH EXIT STATUS\n.TP\n.B 0\ndone\n.TP\n.B 1\nrefused or failed; the reason is on standard error\n.TP\n.B 2\nthe command line was wrong\n")
}

func synopsis(b *strings.Builder, program string, v verb) {
	fmt.Fprintf(b, ".nf\n\\fB%s %s\\fR", roff(program), roff(strings.Join(v.path, " ")))
	if len(v.children) > 0 {
		names := make([]string, 0, len(v.children))
		for _, c := range v.children {
			names = append(names, roff(c.name()))
		}
		fmt.Fprintf(b, " [\\fB%s\\fR]", strings.Join(names, "\\fR|\\fB"))
	}
	if len(v.flags) > 0 {
		b.WriteString(" [\\fIoptions\\fR]")
	}
	if v.argsUsage != "" {
		b.WriteString(" " + roff(v.argsUsage))
	}
	b.WriteString("\n.fi\n")
}

func flags(b *strings.Builder, of []option) {
	for _, o := range of {
		names := make([]string, 0, len(o.names))
		for _, n := range o.names {
			names = append(names, "\\fB"+roff(dashed(n))+"\\fR")
		}
		fmt.Fprintf(b, ".TP\n%s", strings.Join(names, ", "))
		if o.value != "" {
			fmt.Fprintf(b, " \\fI%s\\fR", roff(o.value))
		}
		b.WriteString("\n" + roff(o.usage))
		if o.preset != "" {
			b.WriteString(roff(" (default: " + o.preset + ")"))
		}
		for _, e := range o.env {
			b.WriteString(roff(" [$" + e + "]"))
		}
		b.WriteString("\n")
	}
}

// text writes paragraphs; indented lines, which are examples and tables, stay as they are.
func text(b *strings.Builder, s string) {
	verbatim, plain := false, false // what the line before was
	for line := range strings.Lines(strings.TrimRight(s, "\n")) {
		line = strings.TrimRight(line, "\n")
		indented := strings.HasPrefix(line, "  ")
		switch {
		case indented && !verbatim:
			b.WriteString(".PP\n.RS 4\n.nf\n")
		case !indented && verbatim:
			b.WriteString(".fi\n.RE\n.PP\n")
		}
		line = strings.TrimSpace(line)
		if plain && !indented && line != "" {
			b.WriteString(".br\n")
		}
		if line != "" {
			b.WriteString(roff(line) + "\n")
		}
		verbatim, plain = indented, !indented && line != ""
	}
	if verbatim {
		b.WriteString(".fi\n.RE\n")
	}
}

// roff escapes text: a dash stays one that can be copied, and no line begins a request.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, `"`, `\(dq`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
