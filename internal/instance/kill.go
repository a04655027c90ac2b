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
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
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
