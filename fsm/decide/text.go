package decide

import (
	"fmt"
	"strings"
	"time"

	"matriarch/fsm"
)

func (f Facts) leaseText() string {
	l := f.Group.Lease
	switch {
	case l.Holder == "":
		return fmt.Sprintf("free since epoch %s", f.Group.Epoch)
	case l.Revoked:
		return fmt.Sprintf("revoked (epoch %s of %s)", l.Epoch, f.State.Name(l.Holder))
	case l.Holder == f.Self && l.Instance != f.Instance:
		return fmt.Sprintf("of an earlier sentinel (epoch %s)", l.Epoch)
	}
	return fmt.Sprintf("with %s, epoch %s", f.State.Name(l.Holder), l.Epoch)
}

func (f Facts) names(ids []fsm.NodeID) string {
	var out strings.Builder
	out.WriteString("(")
	for i, id := range ids {
		if i > 0 {
			out.WriteString(", ")
		}
		out.WriteString(f.State.Name(id))
	}
	return out.String() + ")"
}

func (f Facts) confText(c Conf) string {
	up := "follows nobody"
	if c.Upstream != "" {
		up = "follows " + f.State.Name(c.Upstream)
	}
	return fmt.Sprintf("access %s, %d of %s confirm, %s", c.Phase, c.Sync.K, f.names(c.Sync.S), up)
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

func orElse(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
