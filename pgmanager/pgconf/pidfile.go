package pgconf

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// PidFile is the content of postmaster.pid. While PostgreSQL starts, the later lines are missing.
type PidFile struct {
	PID        int
	DataDir    string
	Started    time.Time // whole seconds
	Port       int       // 0 until known
	SocketDir  string
	ListenAddr string
	Status     string // starting, stopping, ready, standby
}

// ParsePidFile reads postmaster.pid.
func ParsePidFile(content []byte) (PidFile, error) {
	l := strings.Split(string(content), "\n")
	at := func(i int) string {
		if i < len(l) {
			return strings.TrimSpace(l[i])
		}
		return ""
	}
	var p PidFile
	pid, err := strconv.ParseInt(at(0), 10, 32)
	if err != nil || pid == 0 {
		return PidFile{}, fmt.Errorf("parse postmaster.pid: first line %q is no process id", at(0))
	}
	if pid < 0 { // a single-user server marks itself so
		pid = -pid
	}
	p.PID, p.DataDir, p.SocketDir, p.ListenAddr, p.Status = int(pid), at(1), at(4), at(5), at(7)
	if s := at(2); s != "" {
		sec, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return PidFile{}, fmt.Errorf("parse postmaster.pid: start time %q is no number", s)
		}
		p.Started = time.Unix(sec, 0).UTC()
	}
	if s := at(3); s != "" {
		if p.Port, err = strconv.Atoi(s); err != nil {
			return PidFile{}, fmt.Errorf("parse postmaster.pid: port %q is no number", s)
		}
	}
	return p, nil
}
