package consensus

import (
	"encoding/binary"
	"errors"

	"github.com/hashicorp/raft"

	"matriarch/fsm"
)

// errVoid answers an entry that was appended in another term than the one it was decided in.
var errVoid = errors.New("leadership changed before the entry was appended")

// guard is the state machine as Raft sees it. Every entry carries the term of the leadership that decided it, and is void, on
// every node and for ever, if it was appended in another one: a leader that loses and regains leadership unnoticed between
// deciding and appending would otherwise expire a lease that somebody else has renewed meanwhile.
type guard struct{ *fsm.Machine }

// Apply implements raft.FSM.
func (g guard) Apply(l *raft.Log) any {
	if len(l.Extensions) == 8 && binary.BigEndian.Uint64(l.Extensions) != l.Term {
		return errVoid
	}
	return g.Machine.Apply(l)
}

// entry is a command decided in a term.
func entry(data []byte, term uint64) raft.Log {
	return raft.Log{Data: data, Extensions: binary.BigEndian.AppendUint64(nil, term)}
}
