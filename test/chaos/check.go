package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// lostNumbers checks a set: every acknowledged number is there, and nothing that nobody added.
func lostNumbers(attempted, acked, present map[int64]bool) (lost, strange []int64) {
	for n := range acked {
		if !present[n] {
			lost = append(lost, n)
		}
	}
	for n := range present {
		if !attempted[n] {
			strange = append(strange, n)
		}
	}
	slices.Sort(lost)
	slices.Sort(strange)
	return lost, strange
}

// twoPrimaries checks the acknowledged writes of one group. A timeline belongs to one promotion, so two nodes that acknowledge on the same one,
// or a write on an older timeline that began after one on a newer timeline was acknowledged, are two primaries at a time.
func twoPrimaries(acks []ack) []string {
	var out []string
	owner := map[uint64]int{}
	for _, a := range acks {
		if o, ok := owner[a.timeline]; ok && o != a.node {
			out = append(out, fmt.Sprintf("timeline %d: %s and %s both acknowledge, the latter at %s", a.timeline, host(o), host(a.node), a.to))
			continue
		}
		owner[a.timeline] = a.node
	}
	byEnd := slices.Clone(acks)
	slices.SortFunc(byEnd, func(a, b ack) int { return cmp.Compare(a.to, b.to) })
	byStart := slices.Clone(acks)
	slices.SortFunc(byStart, func(a, b ack) int { return cmp.Compare(a.from, b.from) })
	var newest ack
	next := 0
	for _, a := range byStart {
		for ; next < len(byEnd) && byEnd[next].to < a.from; next++ {
			if byEnd[next].timeline > newest.timeline {
				newest = byEnd[next]
			}
		}
		if a.timeline < newest.timeline {
			out = append(out, fmt.Sprintf("%s acknowledges on timeline %d from %s to %s, after %s did on %d at %s", host(a.node), a.timeline, a.from, a.to, host(newest.node), newest.timeline, newest.to))
		}
	}
	return out
}

// registerModel is a register per key that begins as 0.
var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[int64][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(regOp).key
			by[k] = append(by[k], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range by {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return int64(0) },
	Step: func(state, input, output any) (bool, any) {
		v, op, a := state.(int64), input.(regOp), output.(regAnswer)
		switch op.kind {
		case "read":
			return !a.known || a.v == v, v
		case "write":
			return true, op.v
		}
		set := v == op.old
		if set {
			v = op.v
		}
		return !a.known || a.set == set, v
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
}

// linearizable checks the registers and returns the operations on the first one that was none. What has no outcome may have happened at any
// time later.
func linearizable(ops []porcupine.Operation, limit time.Duration) (porcupine.CheckResult, []porcupine.Operation) {
	ops = slices.DeleteFunc(slices.Clone(ops), func(op porcupine.Operation) bool {
		return !op.Output.(regAnswer).known && op.Input.(regOp).kind == "read"
	})
	for i := range ops {
		if !ops[i].Output.(regAnswer).known {
			ops[i].Return = math.MaxInt64
			ops[i].ClientId = 1000 + i
		}
	}
	worst := porcupine.Ok
	for _, one := range registerModel.Partition(ops) {
		switch porcupine.CheckOperationsTimeout(registerModel, one, limit) {
		case porcupine.Illegal:
			return porcupine.Illegal, one
		case porcupine.Unknown:
			worst = porcupine.Unknown
		}
	}
	return worst, nil
}

// history is for people.
func history(ops []porcupine.Operation) string {
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var b strings.Builder
	for _, op := range ops {
		fmt.Fprintf(&b, "%s to %s client %d %+v: %+v\n", time.Duration(op.Call), time.Duration(op.Return), op.ClientId, op.Input, op.Output)
	}
	return b.String()
}
