package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// timerSlack is how late the kernel may end this process's sleeps, so that several end together. The Go runtime's monitor makes dozens
// of sleeps of 20 microseconds whenever an idle process wakes up; at the kernel's usual slack they cost as much as the work itself.
const timerSlack = time.Millisecond

// slacken sets the slack of every thread; those made later inherit it. Without the right to, the unit's TimerSlackNSec= does the same.
func slacken() error {
	for range 2 { // the second pass finds threads born during the first
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list threads: %w", err)
		}
		for _, t := range tasks {
			err := os.WriteFile(filepath.Join("/proc", t.Name(), "timerslack_ns"), []byte(strconv.FormatInt(timerSlack.Nanoseconds(), 10)), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // gone meanwhile
				return fmt.Errorf("set the slack of timers: %w", err)
			}
		}
	}
	return nil
}
