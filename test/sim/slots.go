package sim

import (
	"context"

	"matriarch/fsm"
	"matriarch/internal/agent"
)

// Permanent slots and the room on disk are no part of the model.

func (h hands) KeepSlots(context.Context, agent.Roster, fsm.Node) ([]string, error) { return nil, nil }

func (h hands) DropUnready(context.Context, agent.Roster) error { return nil }

func (h hands) CloneRoom(context.Context, fsm.Node) error { return nil }
