package config

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// lineNumbers tells where in the file a path stands.
type lineNumbers map[string]int

// of returns the line of the path or of what encloses it, 0 if neither is in the file.
func (l lineNumbers) of(path string) int {
	for path != "" {
		if line, ok := l[path]; ok {
			return line
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return 0
}

// checker compares a YAML tree with the struct and collects what does not fit, with file, line and key.
type checker struct {
	file  string
	lines lineNumbers
	errs  []error
}

func (ck *checker) fail(n *yaml.Node, format string, args ...any) {
	ck.errs = append(ck.errs, fmt.Errorf("%s:%d: %s", ck.file, n.Line, fmt.Sprintf(format, args...)))
}

func (ck *checker) mapping(n *yaml.Node, t reflect.Type, path string) {
	n = target(n)
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		ck.fail(n, "%s: expected keys and values, found %s", orRoot(path), describe(n))
		return
	}
	fields := fieldsOf(t, path)
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := join(path, key.Value)
		if first, twice := seen[key.Value]; twice {
			ck.fail(key, "%s: given twice, first in line %d: remove one", at, first)
			continue
		}
		seen[key.Value] = key.Line
		ck.lines[at] = key.Line
		f, ok := find(fields, key.Value)
		switch {
		case !ok:
			ck.fail(key, "unknown key %s%s", at, hint(key.Value, fields))
		case f.inline:
			ck.value(value, f.kind.Elem(), at)
		case f.kind.Kind() == reflect.Struct:
			ck.mapping(value, f.kind, at)
		default:
			ck.value(value, f.kind, at)
		}
	}
}

func (ck *checker) value(n *yaml.Node, t reflect.Type, path string) {
	n = target(n)
	if isNull(n) {
		return
	}
	want := expected(t)
	switch t.Kind() {
	case reflect.Map:
		if n.Kind != yaml.MappingNode {
			ck.fail(n, "%s: expected %s, found %s", path, want, describe(n))
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			at := path + "." + n.Content[i].Value
			ck.lines[at] = n.Content[i].Line
			ck.value(n.Content[i+1], t.Elem(), at)
		}
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			ck.fail(n, "%s: expected %s, found %s", path, want, describe(n))
			return
		}
		for i, item := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			ck.lines[at] = item.Line
			ck.value(item, t.Elem(), at)
		}
	default:
		// Decode alone would cut 1.5 down to 1, and take a time without a unit for nanoseconds.
		other := t.Kind() == reflect.Int && n.ShortTag() != "!!int" || t == durationType && n.ShortTag() != "!!str"
		if n.Kind != yaml.ScalarNode || other || n.Decode(reflect.New(t).Interface()) != nil {
			ck.fail(n, "%s: expected %s, found %s", path, want, describe(n))
		}
	}
}

func find(fields []field, key string) (field, bool) {
	for _, f := range fields {
		if f.key == key && !f.inline {
			return f, true
		}
	}
	for _, f := range fields {
		if f.inline {
			return f, true
		}
	}
	return field{}, false
}

func hint(key string, fields []field) string {
	keys := make([]string, 0, len(fields))
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	if near := closest(key, keys); near != "" {
		return fmt.Sprintf(": did you mean %s?", near)
	}
	return ": the keys here are " + strings.Join(keys, ", ")
}

// target follows a YAML alias to what it stands for.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func orRoot(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	default:
		return fmt.Sprintf("%q", n.Value)
	}
}

var durationType = reflect.TypeFor[time.Duration]()

func expected(t reflect.Type) string {
	if t == durationType {
		return "a time with its unit, for instance 500ms or 10s"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Map:
		return "names with a text each"
	case reflect.Slice:
		return "a list of texts"
	default:
		return "a text"
	}
}
