package conductor

import (
	"context"
	"strings"
	"time"

	"matriarch/fsm"
)

const (
	metadataEvery = 1500 * time.Millisecond // what was changed by hand is right again within two seconds
	metadataAgain = 250 * time.Millisecond
	metadataLimit = 20 * time.Second
)

// keepMetadata looks at once when a group has another open primary, and otherwise so often that rows changed by hand
// are put right as well.
func (c *Conductor) keepMetadata(ctx context.Context, lead Lead) {
	seen, next := "", time.Now()
	for {
		t := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		case <-c.meta:
			t.Stop()
			if primaries(lead.State()) == seen {
				continue
			}
		}
		s := lead.State()
		next = time.Now().Add(metadataEvery)
		if !s.Cluster.Settings.Citus || c.pausing.Load() {
			continue
		}
		seen = primaries(s)
		rctx, cancel := context.WithTimeout(ctx, metadataLimit)
		rep := c.cfg.Metadata.Reconcile(rctx, lead.Term(), lead.State)
		cancel()
		if !rep.Paused {
			c.noteMetadata(rep)
		}
		if rep.Paused || !rep.Synced {
			next = time.Now().Add(metadataAgain)
		}
	}
}

func (c *Conductor) noteMetadata(rep MetadataReport) {
	rep.At = time.Now()
	old := c.report.Load()
	if rep.Error != "" && (old == nil || old.Error != rep.Error) {
		c.cfg.Log.Warn("citus metadata not in order", "error", rep.Error)
	}
	for _, d := range rep.Differences {
		c.cfg.Log.Info("citus metadata mended", "difference", d)
	}
	c.report.Store(&rep)
}

// primaries names the open primary of every group with its epoch, and where that has to be known: when this text moves, rows
// must move.
func primaries(s *fsm.State) string {
	var out strings.Builder
	out.WriteString(strings.Join(s.Cluster.Settings.Databases, ",") + ";")
	for _, id := range s.GroupIDs() {
		if s.Groups[id].Retired {
			out.WriteString("retired;")
			continue
		}
		if n, ok := s.Promoted(id); ok && id == 0 {
			out.WriteString("promoted " + n.Postgres)
		}
		if n, ok := s.Primary(id); ok {
			out.WriteString(n.Postgres + " " + s.Groups[id].Epoch.String())
		}
		out.WriteString(";")
	}
	return out.String()
}
