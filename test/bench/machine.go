package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
)

// load is how busy the machine was, clients and formation included.
type load struct {
	Load1       float64 `json:"load1"`
	CPUPressure float64 `json:"cpu_pressure_percent"` // of the last 10 s: some process waited for a CPU
	IOPressure  float64 `json:"io_pressure_percent"`
}

func readLoad() (l load) {
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(b), " ")
		l.Load1, _ = strconv.ParseFloat(first, 64)
	}
	l.CPUPressure, l.IOPressure = pressure("cpu"), pressure("io")
	return l
}

// pressure is -1 where the kernel does not tell.
func pressure(of string) float64 {
	b, err := os.ReadFile("/proc/pressure/" + of)
	if err != nil {
		return -1
	}
	var avg float64
	if _, err := fmt.Sscanf(string(b), "some avg10=%f", &avg); err != nil {
		return -1
	}
	return avg
}

// machine describes where the figures come from.
type machine struct {
	CPUs     int    `json:"cpus"`
	Kernel   string `json:"kernel"`
	Postgres string `json:"postgres"`
	Citus    string `json:"citus"`
	StandIn  bool   `json:"citus_is_a_stand_in"`
}

func describeMachine(pgBin string) machine {
	m := machine{CPUs: runtime.NumCPU()}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := exec.Command(pgBin+"/postgres", "--version").Output(); err == nil {
		m.Postgres = strings.TrimSpace(string(b))
	}
	return m
}
