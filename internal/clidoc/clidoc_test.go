package clidoc

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// tree has one of everything that needs care.
func tree() *cli.App {
	return &cli.App{
		Name: "matriarch", Usage: "keeps a cluster",
		Flags: []cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table"}, &cli.StringFlag{Name: "config", Usage: "the `FILE`", EnvVars: []string{"M_CONFIG"}}},
		Commands: []*cli.Command{
			{Name: "list", Usage: "show members - it's all", Description: ".starts like a request\nsecond\\line\nExample:\n   matriarch list --watch", Flags: []cli.Flag{
				&cli.BoolFlag{Name: "watch", Aliases: []string{"W"}}, &cli.BoolFlag{Name: "secret-flag", Hidden: true}, &cli.IntFlag{Name: "group", Usage: "only `G`", Value: -1},
			}},
			{Name: "config", Usage: "settings", Subcommands: []*cli.Command{{Name: "set", Usage: "change", ArgsUsage: "KEY=VALUE"}, {Name: "show", Usage: "look"}}},
			{Name: "ghost", Usage: "unseen", Hidden: true},
		},
	}
}

func TestManPages(t *testing.T) {
	pages := ManPages(tree(), "1.2.3")
	if len(pages) != 3 {
		t.Fatalf("%d pages, want matriarch.8, matriarch-list.8, matriarch-config.8", len(pages))
	}
	list := string(pages["matriarch-list.8"])
	for _, want := range []string{
		`.TH MATRIARCH\-LIST 8`, `matriarch 1.2.3`, `\&.starts like a request`, `second\eline`, "\\fB\\-\\-watch\\fR, \\fB\\-W\\fR\n", `\fB\-\-group\fR \fIG\fR`, `(default: \-1)`,
		`[$M_CONFIG]`, "matriarch list \\-\\-watch\n.fi", ".SH EXIT STATUS",
	} {
		if !strings.Contains(list, want) {
			t.Errorf("no %q in:\n%s", want, list)
		}
	}
	if config := string(pages["matriarch-config.8"]); !strings.Contains(config, `\fBset\fR|\fBshow\fR`) || !strings.Contains(config, ".SH CONFIG SET\n") {
		t.Errorf("subverbs are missing:\n%s", config)
	}
	for name, page := range pages {
		if strings.Contains(string(page), "ghost") || strings.Contains(string(page), "secret") {
			t.Errorf("%s shows what is hidden", name)
		}
	}
}

func TestCompletionIsTheSameEachTime(t *testing.T) {
	for _, shell := range Shells() {
		a, ok := Completion(tree(), shell)
		b, _ := Completion(tree(), shell)
		if !ok || string(a) != string(b) || strings.Contains(string(a), "ghost") || strings.Contains(string(a), "secret") {
			t.Errorf("%s: %v\n%s", shell, ok, a)
		}
	}
	if _, ok := Completion(tree(), "tcsh"); ok {
		t.Error("tcsh is unknown")
	}
}

// TestBashCompletes asks a real bash what it offers.
func TestBashCompletes(t *testing.T) {
	sh, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash here")
	}
	script, _ := Completion(tree(), "bash")
	file := filepath.Join(t.TempDir(), "matriarch")
	if err := os.WriteFile(file, script, 0o600); err != nil {
		t.Fatal(err)
	}
	for typed, want := range map[string]string{
		"":                         "config list",
		"l":                        "list",
		"config ":                  "set show",
		"config set --o":           "--output",
		"list --":                  "--config --group --help --output --watch",
		"list -o ":                 "json table yaml",
		"-o json li":               "list",
		"--config list conf":       "config", // the word behind --config is its value, not a verb
		"list --group ":            "",
		"config show --output=":    "",
		"config nothing set --wat": "",
	} {
		words := strings.Fields(typed)
		if typed == "" || strings.HasSuffix(typed, " ") {
			words = append(words, "")
		}
		line := []string{"matriarch"}
		line = append(line, words...)
		quoted := make([]string, 0, len(line))
		for _, w := range line {
			quoted = append(quoted, quote(w))
		}
		out, err := exec.Command(sh, "--norc", "-c", `. "$1"; COMP_WORDS=(`+strings.Join(quoted, " ")+`); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _matriarch; echo "${COMPREPLY[@]}"`, "_", file).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", typed, err, out)
		}
		got := strings.Fields(string(out))
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%q offers %q, want %q", typed, got, want)
		}
	}
}
