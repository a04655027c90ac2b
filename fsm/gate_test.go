package fsm

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type inner struct {
	Old int
	New string `since:"3"`
}

type sample struct {
	A    int
	B    *bool  `since:"2"`
	C    []byte `since:"2"`
	In   inner
	Many map[string]inner
	List []inner
	P    *inner
}

func (sample) Kind() string { return "sample" }

func TestNeeds(t *testing.T) {
	for name, tt := range map[string]struct {
		c    Command
		want int
	}{
		"plain":            {sample{A: 1, In: inner{Old: 1}}, 1},
		"pointer":          {sample{B: new(false)}, 2},
		"in a struct":      {sample{B: new(true), In: inner{New: "x"}}, 3},
		"in a map":         {sample{Many: map[string]inner{"a": {}, "b": {New: "x"}}}, 3},
		"in a slice":       {sample{C: []byte{1}, List: []inner{{}, {Old: 1}}}, 2},
		"behind":           {sample{P: &inner{New: "x"}}, 3},
		"gate":             {GateSet{7}, 7},
		"bootstrap":        {Bootstrap{Node: Node{Protocol: 2}}, 2},
		"old bootstrap":    {Bootstrap{}, 1},
		"today's defaults": {SettingsPut{DefaultSettings()}, 2},
		"links as before":  {links(""), 1},
	} {
		if got := Needs(tt.c); got != tt.want {
			t.Errorf("%s: needs %d, want %d", name, got, tt.want)
		}
	}
}

func TestKnown(t *testing.T) {
	full := sample{A: 1, B: new(true), C: []byte{1}, In: inner{1, "x"}}
	for gate, want := range map[int]sample{
		1: {A: 1, In: inner{Old: 1}}, 2: {A: 1, B: new(true), C: []byte{1}, In: inner{Old: 1}}, 3: full,
	} {
		if d := cmp.Diff(want, Known(full, gate)); d != "" {
			t.Errorf("gate %d: %s", gate, d)
		}
	}
}

// Nothing newer than the gate ever comes out of Fit, and a refusal says what to do.
func TestFit(t *testing.T) {
	if _, err := Fit(sample{B: new(true)}, 1); err == nil || !strings.Contains(err.Error(), "upgrade every node") {
		t.Errorf("error %v", err)
	}
	if c, err := Fit(sample{B: new(true)}, 2); err != nil || Needs(c) != 2 {
		t.Errorf("%v, %v", c, err)
	}
	if c, err := Fit(GroupSet{Paused: new(true), By: "ann"}, 1); err != nil || c.(GroupSet).By != "" || c.(GroupSet).Paused == nil {
		t.Errorf("a pause, which the first version knew: %+v, %v", c, err)
	}
	for _, gate := range []int{0, 2} {
		if c, err := Fit(GroupSet{Paused: new(true), By: "ann"}, gate); err != nil || c.(GroupSet).By != "ann" {
			t.Errorf("gate %d: who asked for it is lost: %+v, %v", gate, c, err)
		}
	}
	if _, err := Fit(GroupSet{Failsafe: new(true), By: "ann"}, 1); err == nil {
		t.Error("failsafe was let through")
	}
	for _, c := range everyCommand() {
		for gate := 1; gate <= Protocol; gate++ {
			got, err := Fit(c, gate)
			if _, raises := c.(GateSet); err == nil && !raises && Needs(got) > gate {
				t.Errorf("gate %d lets %+v through", gate, got)
			}
		}
	}
}

// A field that is newer than version 1 means by its zero value what the versions before it did: then it must not be written.
func TestNewFieldsAreOmitted(t *testing.T) {
	var look func(typ reflect.Type, path string)
	seen := map[reflect.Type]bool{}
	look = func(typ reflect.Type, path string) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			look(typ.Elem(), path)
		case reflect.Struct:
			if seen[typ] {
				return
			}
			seen[typ] = true
			for f := range typ.Fields() {
				if tag := f.Tag.Get("json"); sinceTag(f) > 1 && !strings.Contains(tag, "omit") {
					t.Errorf("%s.%s is of version %d and is written when it is empty", path, f.Name, sinceTag(f))
				}
				if sinceTag(f) > Protocol {
					t.Errorf("%s.%s is newer than this binary", path, f.Name)
				}
				look(f.Type, path+"."+f.Name)
			}
		}
	}
	look(reflect.TypeFor[State](), "State")
	for _, c := range everyCommand() {
		look(reflect.TypeOf(c), c.Kind())
	}
}

// A snapshot says who may read it: whoever knows the formation's version.
func TestSnapshotNeedsTheGate(t *testing.T) {
	s := NewState()
	s.Cluster.Gate = Protocol + 1
	var b bytes.Buffer
	if err := WriteSnapshot(&b, s); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSnapshot(&b); err == nil || !strings.Contains(err.Error(), "install a newer one") {
		t.Errorf("error %v", err)
	}
}
