package instance

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

// killSentinel ends a sentinel that does not answer: frozen, it could wake later and act on what it remembers. The number is
// checked to be that of a sentinel on this very socket first.
func killSentinel(pid int, socket string) {
	cmdline, err := os.ReadFile(procFile(pid, "cmdline"))
	if err != nil {
		return
	}
	args := bytes.Split(cmdline, []byte{0})
	isOurs, isSentinel := false, false
	for _, a := range args {
		isOurs = isOurs || string(a) == socket
		isSentinel = isSentinel || string(a) == "sentinel"
	}
	if isOurs && isSentinel {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func procFile(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

// stateOf reads the letter for what a process does from the contents of /proc/PID/stat; 0 when there is none.
func stateOf(stat []byte) byte {
	i := bytes.LastIndexByte(stat, ')') // the name before it may hold anything
	if i < 0 || i+2 >= len(stat) {
		return 0
	}
	return stat[i+2]
}
