package clidoc

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Shells lists what Completion knows.
func Shells() []string { return []string{"bash", "fish", "zsh"} }

// Completion is the script that makes a shell complete verbs and flags; ok is false for an unknown shell. It asks nothing of the program.
func Completion(app *cli.App, shell string) (script []byte, ok bool) {
	root := treeOf(app)
	switch shell {
	case "bash":
		return bash(app.Name, root), true
	case "zsh":
		return zsh(app.Name, root), true
	case "fish":
		return fish(app.Name, root), true
	}
	return nil, false
}

// spoken are the flags that may stand behind a verb: its own and the global ones.
func spoken(root, v verb) []option {
	if len(v.path) == 0 {
		return root.flags
	}
	return append(slices.Clone(v.flags), root.flags...)
}

func flagWords(of []option) []string {
	out := []string{"--help"}
	for _, o := range of {
		for _, n := range o.names {
			out = append(out, dashed(n))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// takers are all flags whose next word is a value; of those, files are paths.
func takers(root verb) (all, files []string) {
	root.walk(func(v verb) {
		for _, o := range v.flags {
			for _, n := range o.names {
				if o.value == "" {
					continue
				}
				all = append(all, dashed(n))
				if slices.Contains([]string{"FILE", "DIR", "SOCKET", "PATH"}, o.value) {
					files = append(files, dashed(n))
				}
			}
		}
	})
	slices.Sort(all)
	slices.Sort(files)
	return slices.Compact(all), slices.Compact(files)
}

func paths(root verb) []string {
	var out []string
	root.walk(func(v verb) {
		if len(v.path) > 0 {
			out = append(out, strings.Join(v.path, " "))
		}
	})
	return out
}

func childNames(v verb) []string {
	var out []string
	for _, c := range v.children {
		out = append(out, c.name())
	}
	return out
}

// caseOf lists words as the pattern of a shell's case.
func caseOf(words []string) string {
	quoted := make([]string, 0, len(words))
	for _, w := range words {
		quoted = append(quoted, quote(w))
	}
	return strings.Join(quoted, "|")
}

// quote is a word that no shell looks into.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func bash(program string, root verb) []byte {
	all, files := takers(root)
	var b strings.Builder
	fmt.Fprintf(&b, `# Completion of %[1]s for bash, made from its verbs.
_%[1]s() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path= word i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            %[2]s) ((i++)); continue ;;
            -*) continue ;;
        esac
        case "${path:+$path }$word" in
            %[3]s) path="${path:+$path }$word" ;;
        esac
    done
    COMPREPLY=()
    case $prev in
        --output|-o) COMPREPLY=($(compgen -W 'table json yaml' -- "$cur")); return ;;
        %[4]s) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        %[2]s) return ;;
    esac
    local verbs= flags=
    case $path in
`, program, caseOf(all), caseOf(paths(root)), caseOf(files))
	root.walk(func(v verb) {
		fmt.Fprintf(&b, "        %s) verbs=%s flags=%s ;;\n", quote(strings.Join(v.path, " ")), quote(strings.Join(childNames(v), " ")), quote(strings.Join(flagWords(spoken(root, v)), " ")))
	})
	fmt.Fprintf(&b, `    esac
    case $cur in
        -*) COMPREPLY=($(compgen -W "$flags" -- "$cur")) ;;
        *) if [[ -n $verbs ]]; then COMPREPLY=($(compgen -W "$verbs" -- "$cur")); else COMPREPLY=($(compgen -f -- "$cur")); fi ;;
    esac
}
complete -o filenames -F _%[1]s %[1]s
`, program)
	return []byte(b.String())
}

func zsh(program string, root verb) []byte {
	all, files := takers(root)
	var b strings.Builder
	fmt.Fprintf(&b, `#compdef %[1]s
# Completion of %[1]s for zsh, made from its verbs.
_%[1]s() {
    local cur=${words[CURRENT]} prev=${words[CURRENT-1]} at='' word i
    for ((i = 2; i < CURRENT; i++)); do
        word=${words[i]}
        case $word in
            (%[2]s) ((i++)); continue ;;
            (-*) continue ;;
        esac
        case "${at:+$at }$word" in
            (%[3]s) at="${at:+$at }$word" ;;
        esac
    done
    case $prev in
        (--output|-o) compadd table json yaml; return ;;
        (%[4]s) _files; return ;;
        (%[2]s) return ;;
    esac
    local -a verbs flags
    case $at in
`, program, caseOf(all), caseOf(paths(root)), caseOf(files))
	root.walk(func(v verb) {
		verbs := make([]string, 0, len(v.children))
		for _, c := range v.children {
			verbs = append(verbs, quote(c.name()+":"+c.usage))
		}
		fmt.Fprintf(&b, "        (%s) verbs=(%s) flags=(%s) ;;\n", quote(strings.Join(v.path, " ")), strings.Join(verbs, " "), strings.Join(flagWords(spoken(root, v)), " "))
	})
	fmt.Fprintf(&b, `    esac
    if [[ $cur == -* ]]; then
        compadd -a flags
    elif (( ${#verbs} )); then
        _describe verb verbs
    else
        _files
    fi
}
if [[ $funcstack[1] == _%[1]s ]]; then
    _%[1]s "$@"
else
    compdef _%[1]s %[1]s
fi
`, program)
	return []byte(b.String())
}

func fish(program string, root verb) []byte {
	all, _ := takers(root)
	var b strings.Builder
	fmt.Fprintf(&b, `# Completion of %[1]s for fish, made from its verbs.
function __%[1]s_path
    set -l path
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
        else if contains -- $word %[2]s
            set skip 1
        else if contains -- (string join ' ' $path $word) %[3]s
            set path $path $word
        end
    end
    string join ' ' $path
end
function __%[1]s_at
    test (__%[1]s_path) = "$argv"
end
complete -c %[1]s -f
`, program, strings.Join(all, " "), strings.ReplaceAll(caseOf(paths(root)), "|", " "))
	root.walk(func(v verb) {
		at := "'__" + program + `_at "` + strings.Join(v.path, " ") + `"'`
		for _, c := range v.children {
			fmt.Fprintf(&b, "complete -c %s -n %s -a %s -d %s\n", program, at, quote(c.name()), quote(c.usage))
		}
		for _, o := range spoken(root, v) {
			fmt.Fprintf(&b, "complete -c %s -n %s", program, at)
			for _, n := range o.names {
				if len(n) == 1 {
					b.WriteString(" -s " + n)
				} else {
					b.WriteString(" -l " + n)
				}
			}
			switch {
			case o.names[0] == "output":
				b.WriteString(" -x -a 'table json yaml'")
			case o.value != "":
				b.WriteString(" -r -F")
			}
			fmt.Fprintf(&b, " -d %s\n", quote(o.usage))
		}
	})
	return []byte(b.String())
}
