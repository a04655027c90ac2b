package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

func checkOutput(c *cli.Context) error {
	if o := c.String("output"); !slices.Contains([]string{"table", "json", "yaml"}, o) {
		return usagef(c, "output %q must be table, json or yaml", o)
	}
	return nil
}

// output is emit for a human part that knows where to write.
func output(c *cli.Context, v any, human func()) error {
	return emit(c, v, func(io.Writer) { human() })
}

// emit prints a result in the form that --output asks for. v has the JSON keys; human writes the table.
func emit(c *cli.Context, v any, human func(w io.Writer)) error {
	w := c.App.Writer
	switch c.String("output") {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	case "yaml":
		return writeYAML(w, v)
	}
	b := bufio.NewWriter(w)
	human(b)
	return b.Flush()
}

// writeYAML goes through JSON, so that both have the same keys: JSON is YAML, only its style changes.
func writeYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return err
	}
	plain(&doc)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return enc.Close()
}

func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
}

// grid prints a bordered table. Columns named in right are aligned right.
func grid(w io.Writer, title string, header []string, rows [][]string, separateBy int, right ...string) {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Format.Header, style.Title.Format = text.FormatDefault, text.FormatDefault
	t.SetStyle(style)
	if title != "" {
		t.SetTitle("%s", title)
	}
	t.AppendHeader(row(header))
	for i, r := range rows {
		if separateBy >= 0 && i > 0 && rows[i-1][separateBy] != r[separateBy] {
			t.AppendSeparator()
		}
		t.AppendRow(row(r))
	}
	var columns []table.ColumnConfig
	for i, h := range header {
		if slices.Contains(right, h) {
			columns = append(columns, table.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
	}
	t.SetColumnConfigs(columns)
	fmt.Fprintln(w, t.Render())
}

func row(cells []string) table.Row {
	out := make(table.Row, 0, len(cells))
	for _, c := range cells {
		out = append(out, c)
	}
	return out
}

// pairs prints "key: value" lines with the values in one column; empty values are left out.
func pairs(w io.Writer, kv ...string) {
	width := 0
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] != "" {
			width = max(width, len(kv[i]))
		}
	}
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] != "" {
			fmt.Fprintf(w, "%-*s  %s\n", width+1, kv[i]+":", kv[i+1])
		}
	}
}

// confirm has the operator type word on a terminal. Elsewhere nobody can, and --yes is asked for.
func (p *program) confirm(c *cli.Context, word, question string) error {
	if c.Bool("yes") {
		return nil
	}
	if f, ok := p.in.(*os.File); ok && !term.IsTerminal(int(f.Fd())) {
		return fmt.Errorf("%s: not confirmed: give --yes when there is no terminal to ask", c.Command.Name)
	}
	fmt.Fprintf(p.err, "%s\nType %q to go on: ", question, word)
	line, err := bufio.NewReader(p.in).ReadString('\n')
	if err != nil && err != io.EOF {
		return fmt.Errorf("%s: read the confirmation: %w", c.Command.Name, err)
	}
	if strings.TrimSpace(line) != word {
		return fmt.Errorf("%s: not confirmed, nothing was changed", c.Command.Name)
	}
	return nil
}

// operator names who asks, for the history.
func operator() string {
	name := "somebody"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}
