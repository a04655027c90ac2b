package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func residentFile(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssFile:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile in /proc/self/status")
	return 0
}

func TestDropStartupGivesPagesBack(t *testing.T) {
	before := residentFile(t)
	n, err := dropStartup()
	if err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); n == 0 || after >= before {
		t.Errorf("looked at %d bytes; %d kB resident before, %d after", n, before, after)
	}
}
