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
	var errs []error
	saved := 0
	for _, n := range d.Nodes() {
		for _, log := range []string{n.logFile(), filepath.Join(n.stateDir(), "postgresql.log"), filepath.Join(n.stateDir(), "sentinel.log")} {
			b, err := os.ReadFile(log)
			if err != nil {
				continue // a node that never came so far
			}
			saved++
			errs = append(errs, os.MkdirAll(to, 0o700), os.WriteFile(filepath.Join(to, n.Name+"-"+filepath.Base(log)), b, 0o600))
		}
	}
	if saved > 0 && errors.Join(errs...) == nil {
		d.say("The nodes' logs are in %s.", to)
	}
}
