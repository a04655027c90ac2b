package demo

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// keepLogs saves the nodes' logs of a demo that has failed, before its directory goes.
func (d *Demo) keepLogs() {
	to := strings.TrimRight(d.cfg.Dir, "/") + "-logs"
	if err := os.MkdirAll(to, 0o755); err != nil { //nolint:gosec // logs of a demo
		return
	}
	var errs []error
	for _, n := range d.Nodes() {
		for _, log := range []string{n.logFile(), filepath.Join(n.stateDir(), "postgresql.log"), filepath.Join(n.stateDir(), "sentinel.log")} {
			b, err := os.ReadFile(log)
			if err != nil {
				continue // a node that never came so far
			}
			errs = append(errs, os.WriteFile(filepath.Join(to, n.Name+"-"+filepath.Base(log)), b, 0o600))
		}
	}
	if errors.Join(errs...) == nil {
		d.say("The nodes' logs are in %s.", to)
	}
}
