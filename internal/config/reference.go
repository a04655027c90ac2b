package config

import (
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

const referenceHead = `<!-- Made from the code by 'go generate ./internal/config'; change the struct there. -->
# Configuration

Each node has one YAML file, named with ` + "`--config`" + `. ` + "`matriarch bootstrap`" + ` and ` + "`matriarch join`" + ` write it, mode 0600;
` + "`matriarch config validate`" + ` checks it. A key that is not listed here is an error. The file describes this node only: what concerns the
cluster (lease times, durability) is kept in the replicated state, and secrets are never in the file but in ` + "`<state_dir>/secrets`" + `
(directory mode 0700, files 0600).

A default in *italics* is worked out from other values or from the machine when the key is empty or missing. Directories must be absolute,
and none may lie inside the data directory.

`

// Reference renders every key as a Markdown page: key, type, default, meaning.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	b.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
	walk(reflect.ValueOf(Default()), "", func(f field, v reflect.Value) {
		help := f.help
		if len(f.values) > 0 {
			help += " One of " + strings.Join(f.values, ", ") + "."
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.path, shortType(f), defaultText(f, v), strings.ReplaceAll(help, "|", `\|`))
	})
	return b.String()
}

func shortType(f field) string {
	if f.kind == durationType {
		return "time"
	}
	switch f.kind.Kind() {
	case reflect.Bool:
		return "boolean"
	case reflect.Int:
		return "integer"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		if f.inline {
			return "text"
		}
		return "map"
	default:
		return "text"
	}
}

func defaultText(f field, v reflect.Value) string {
	switch {
	case f.derived != "":
		return "*" + strings.NewReplacer("<", `\<`, ">", `\>`, "_", `\_`).Replace(f.derived) + "*"
	case f.path == "node.id" || f.path == "node.name":
		return "required"
	case v.IsZero() && (v.Kind() == reflect.String || v.Kind() == reflect.Map || v.Kind() == reflect.Slice):
		return "none"
	default:
		return fmt.Sprintf("`%v`", v.Interface())
	}
}

// Sample renders the completed defaults as a commented file, the starting point for people who write theirs by hand.
func Sample() string {
	var b strings.Builder
	b.WriteString("# Matriarch's configuration of one node. Every value shown is the default; node.id, node.name and advertise must be set.\n")
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	// Encoding a tree of texts into memory cannot fail.
	_ = enc.Encode(sampleMapping(reflect.ValueOf(Default().Complete()), ""))
	_ = enc.Close()
	return b.String()
}

func sampleMapping(v reflect.Value, prefix string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range fieldsOf(v.Type(), prefix) {
		if f.inline {
			continue
		}
		key := &yaml.Node{Kind: yaml.ScalarNode, Value: f.key}
		if f.help != "" {
			key.HeadComment = f.help
		}
		value := &yaml.Node{}
		if f.kind.Kind() == reflect.Struct {
			value = sampleMapping(v.Field(f.index), f.path)
		} else {
			_ = value.Encode(v.Field(f.index).Interface())
		}
		n.Content = append(n.Content, key, value)
	}
	return n
}
