package config

import (
	"reflect"
	"strings"
)

// field is one key of the file as the struct describes it.
type field struct {
	path    string // dotted, for instance postgresql.data_dir
	key     string // last part of path
	kind    reflect.Type
	index   int
	help    string
	derived string
	values  []string
	inline  bool // takes every key that no other field has
}

// fieldsOf lists the keys of a struct type in their order of declaration.
func fieldsOf(t reflect.Type, prefix string) []field {
	fields := make([]field, 0, t.NumField())
	for sf := range t.Fields() {
		name, options, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		f := field{
			path: join(prefix, name), key: name, kind: sf.Type, index: sf.Index[0],
			help: sf.Tag.Get("help"), derived: sf.Tag.Get("derived"), values: strings.Fields(sf.Tag.Get("values")),
			inline: options == "inline",
		}
		if f.inline {
			f.path = join(prefix, "<your own>")
		}
		fields = append(fields, f)
	}
	return fields
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// walk calls visit for every key below v that holds a value rather than further keys.
func walk(v reflect.Value, prefix string, visit func(f field, v reflect.Value)) {
	for _, f := range fieldsOf(v.Type(), prefix) {
		if f.kind.Kind() == reflect.Struct {
			walk(v.Field(f.index), f.path, visit)
			continue
		}
		visit(f, v.Field(f.index))
	}
}

// closest returns the candidate that a mistyped key most likely meant, or "" when none is near.
func closest(key string, candidates []string) string {
	best, bestDistance := "", min(3, len(key)/2+1)
	for _, c := range candidates {
		if d := distance(strings.ToLower(key), c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace or swap with their neighbour to make a out of b.
func distance(a, b string) int {
	before, previous, current := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		current[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			current[j] = min(previous[j]+1, current[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				current[j] = min(current[j], before[j-2]+1)
			}
		}
		before, previous, current = previous, current, before
	}
	return previous[len(b)]
}
