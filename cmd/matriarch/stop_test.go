package main

import (
	"bufio"
	"bytes"
	"os/exec"
	"strconv"
	"testing"
)

func TestRestartJob(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		jobs string
		want bool
	}{
		"restart":      {"1234 matriarch.service restart running\n", true},
		"stop":         {"1234 matriarch.service stop    running\n", false},
		"nothing":      {"", false},
		"another unit": {"7 my-matriarch.service restart waiting\n", false},
		"both":         {"7 my-matriarch.service restart waiting\n1234 matriarch.service stop running\n", false},
	} {
		if got := restartJob(tc.jobs, "matriarch.service"); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// TestStopVerb: it interrupts the process and waits for its end, and has nothing to do for one that has ended.
func TestStopVerb(t *testing.T) {
	t.Setenv("MAINPID", "")
	stop := func(args ...string) (int, string) {
		var out, errs bytes.Buffer
		return run(t.Context(), append([]string{"matriarch", "stop"}, args...), nil, &out, &errs), errs.String()
	}
	if code, says := stop(); code != 0 {
		t.Errorf("without a process: exit %d %s", code, says)
	}
	if code, says := stop("--pid", "1"); code != 2 {
		t.Errorf("pid 1: exit %d %s", code, says)
	}
	cmd := exec.Command("sh", "-c", "trap 'sleep 0.2; exit 7' INT; echo ready; while :; do sleep 0.05; done")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // the trap is set
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if code, says := stop("--pid", strconv.Itoa(cmd.Process.Pid)); code != 0 {
		t.Errorf("exit %d %s", code, says)
	}
	<-ended
	if got := cmd.ProcessState.ExitCode(); got != 7 {
		t.Errorf("the process ended with %d", got)
	}
}
