package fsm

import "fmt"

// Invariant checks what must hold in every state, and between a state and its successor.
func Invariant(prev, next *State) error {
	pausing := 0
	for id, g := range next.Groups {
		if err := groupInvariant(next, g); err != nil {
			return fmt.Errorf("group %d: %w", id, err)
		}
		if g.Op.Pausing() {
			pausing++
		}
		p, ok := prev.Groups[id]
		if !ok {
			continue
		}
		switch {
		case g.Epoch.Less(p.Epoch):
			return fmt.Errorf("group %d: epoch fell from %s to %s", id, p.Epoch, g.Epoch)
		case p.Held() && g.Held() && p.Lease.Epoch != g.Lease.Epoch && !p.Lease.Early:
			return fmt.Errorf("group %d: lease went from epoch %s to %s without being free", id, p.Lease.Epoch, g.Lease.Epoch)
		case p.Held() && g.Held() && p.Lease.Epoch == g.Lease.Epoch && (p.Lease.Holder != g.Lease.Holder || p.Lease.Instance != g.Lease.Instance):
			return fmt.Errorf("group %d: epoch %s changed hands", id, g.Lease.Epoch)
		case p.SystemID != "" && p.SystemID != g.SystemID:
			return fmt.Errorf("group %d: system identifier changed", id)
		}
	}
	if pausing > 1 {
		return fmt.Errorf("%d operations may pause the formation, not one", pausing)
	}
	return nil
}

func groupInvariant(s *State, g Group) error {
	if g.Held() {
		if _, ok := s.Nodes[g.Lease.Holder]; !ok {
			return fmt.Errorf("holder %s is not a node", g.Lease.Holder)
		}
		if g.Lease.Epoch != g.Epoch {
			return fmt.Errorf("lease has epoch %s, group %s", g.Lease.Epoch, g.Epoch)
		}
		if g.Lease.Early && !g.Lease.Revoked {
			return fmt.Errorf("epoch %s may be followed early, but is not revoked", g.Lease.Epoch)
		}
		if g.Sync.Target().Has(g.Lease.Holder) {
			return fmt.Errorf("holder %s is in its own synchronous set", g.Lease.Holder)
		}
	}
	if g.Op.Pausing() && g.Op.Epoch != g.Epoch {
		return fmt.Errorf("a %s of epoch %s is left in epoch %s", g.Op.Kind, g.Op.Epoch, g.Epoch)
	}
	if g.Eligible != nil && !g.MayHold(g.LastHolder) {
		return fmt.Errorf("%s was granted the lease, but is not eligible", g.LastHolder)
	}
	for i, gr := range g.Grants {
		if i > 0 && !g.Grants[i-1].Epoch.Less(gr.Epoch) {
			return fmt.Errorf("grants out of order at epoch %s", gr.Epoch)
		}
	}
	if g.SystemID != "" && len(g.Sync.Pairs) == 0 {
		return fmt.Errorf("initialised without a synchronous pair")
	}
	return nil
}
