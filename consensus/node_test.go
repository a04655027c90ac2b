package consensus

import (
	"testing"

	"matriarch/fsm"
)

func TestElectProposeForward(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 0, 0)
		for _, p := range all {
			h.submit(p, fsm.TokenPut{Token: fsm.Token{ID: "by-" + string(p.id), Uses: 1}})
		}
		for _, p := range all {
			s, err := p.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Tokens) != 4 {
				t.Errorf("%s knows tokens %v", p.id, s.Tokens)
			}
		}
	})
}
