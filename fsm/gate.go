package fsm

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// What came after version 1 says so: a field by the tag `since:"2"`, a command by a method since. The zero value of such a field
// means what the versions before it did, so that a state without it and a state that never heard of it are the same.
//
// Nothing newer than the gate gets into the log. The gate is raised by an operator once every node's binary knows the version; until
// then each node may go back to the binary it had.

// newcomer is a command that not every version knows.
type newcomer interface{ since() int }

// since makes an older binary stop at the entry itself, with its sentence about a newer version.
func (c GateSet) since() int { return max(c.Gate, 1) }

// since is what the first node knows: its formation begins with that, and is no place for older binaries.
func (c Bootstrap) since() int { return max(c.Node.Protocol, 1) }

// Needs returns the command version that a reader must know to understand the command wholly: 1 or more.
func Needs(c Command) int {
	need := 1
	if n, ok := c.(newcomer); ok {
		need = n.since()
	}
	return max(need, needs(reflect.ValueOf(c)))
}

// Newer is the refusal of what older nodes would not understand.
type Newer struct {
	Kind        string
	Needs, Gate int
}

// Error implements error.
func (n *Newer) Error() string {
	return fmt.Sprintf("this needs command version %d (%s), and the formation still works with version %d, so that older binaries can take part: "+
		"upgrade every node, then run `matriarch upgrade finish`", n.Needs, n.Kind, n.Gate)
}

// Fit returns the command as a formation with this gate may have it in its log. What only informs, the reports, what nodes say of
// themselves and who asked for a policy, loses what is newer; anything else that is newer is refused with *Newer. A gate of 0 is that of a formation yet to be.
func Fit(c Command, gate int) (Command, error) {
	if gate == 0 || Needs(c) <= gate {
		return c, nil
	}
	switch informs := c.(type) {
	case Tick:
		informs.Reports = maps.Clone(informs.Reports)
		for n, r := range informs.Reports {
			informs.Reports[n] = Known(r, gate)
		}
		c = informs
	case Join:
		informs.Node = Known(informs.Node, gate)
		c = informs
	case NodePut:
		informs.Node = Known(informs.Node, gate)
		c = informs
	case GroupSet:
		informs.By = ""
		c = informs
	case GateSet:
		return c, nil // the state decides
	}
	if need := Needs(c); need > gate {
		return nil, &Newer{c.Kind(), need, gate}
	}
	return c, nil
}

// Known returns v, a plain struct, without the fields that are newer than the gate.
func Known[T any](v T, gate int) T {
	strip(reflect.ValueOf(&v).Elem(), gate)
	return v
}

func strip(v reflect.Value, gate int) {
	for i := range v.NumField() {
		f := v.Field(i)
		switch {
		case !v.Type().Field(i).IsExported():
		case sinceTag(v.Type().Field(i)) > gate:
			f.SetZero()
		case f.Kind() == reflect.Struct:
			strip(f, gate)
		}
	}
}

// needs is the greatest version among the fields that are set.
func needs(v reflect.Value) int {
	need := 1
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			need = needs(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			need = max(need, needs(v.Index(i)))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			need = max(need, needs(v.MapIndex(k)))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.IsExported() && !v.Field(i).IsZero() {
				need = max(need, sinceTag(f), needs(v.Field(i)))
			}
		}
	}
	return need
}

func sinceTag(f reflect.StructField) int {
	n, err := strconv.Atoi(f.Tag.Get("since"))
	if err != nil {
		return 1
	}
	return n
}

// gateSet raises the gate, never beyond what the binary of some node knows.
func (e entry) gateSet(c GateSet) Result {
	if old := e.Outdated(c.Gate); len(old) > 0 {
		return refuse("version %d of the commands is not known to every node: upgrade matriarch on %s first", c.Gate, strings.Join(old, ", "))
	}
	e.Cluster.Gate = max(e.Cluster.Gate, c.Gate)
	return done
}

// Outdated lists the nodes, by name and version, whose binary does not know a version of the commands.
func (s *State) Outdated(gate int) []string {
	var out []string
	for _, n := range s.Nodes {
		if max(n.Protocol, 1) < gate {
			out = append(out, fmt.Sprintf("%s (%s)", n.Name, n.Version))
		}
	}
	slices.Sort(out)
	return out
}
