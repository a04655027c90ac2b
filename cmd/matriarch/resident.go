package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// dropStartup gives back the pages of the program file that only start-up touched. They are clean pages of a file: what is
// needed again is read again. It returns how many bytes of mappings it looked at; a failure costs nothing but memory.
func dropStartup() (bytes uint64, err error) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, fmt.Errorf("find our own program: %w", err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return 0, fmt.Errorf("read our own mappings: %w", err)
	}
	defer func() { _ = f.Close() }()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var from, to uint64
		var perms string
		if !strings.HasSuffix(sc.Text(), exe) {
			continue
		}
		if _, err := fmt.Sscanf(sc.Text(), "%x-%x %s", &from, &to, &perms); err != nil || strings.Contains(perms, "w") {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_DONTNEED); errno != 0 {
			return bytes, fmt.Errorf("give back start-up's pages: %w", errno)
		}
		bytes += to - from
	}
	return bytes, nil
}
