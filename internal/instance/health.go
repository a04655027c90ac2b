package instance

import (
	"context"
	"os"

	"matriarch/fsm/decide"
)

// Try implements agent.Postgres.
func (p *Postgres) Try(ctx context.Context, primary bool, connected func()) decide.Trial {
	return decide.Trial(p.m.Try(ctx, primary, connected))
}

// Disks implements agent.Postgres.
func (p *Postgres) Disks() []decide.Disk {
	var out []decide.Disk
	for _, d := range p.m.Disks() {
		out = append(out, decide.Disk(d))
	}
	return out
}

// Stopped implements agent.Postgres. It touches no file but the kernel's, as the disk may hang.
func (p *Postgres) Stopped() bool {
	pid := p.sentinel.Status().Postmaster
	if pid == 0 {
		return false
	}
	b, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return false
	}
	state := stateOf(b)
	return state == 'T' || state == 't'
}
