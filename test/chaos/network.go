package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// network is a switch in the own namespace with one namespace a host behind it. What is cut is cut between hosts, on the switch: we reach
// all of them, and no host sees a rule.
type network struct {
	mu    sync.Mutex
	rules map[int][]string // by fault
}

// controller is our own address.
const controller = "10.77.0.254"

func ip(i int) string        { return fmt.Sprintf("10.77.0.%d", i+1) }
func host(i int) string      { return fmt.Sprintf("h%d", i+1) }
func swPort(i int) string    { return fmt.Sprintf("sw%d", i+1) }
func nsFile(i int) string    { return "/run/netns/" + host(i) }
func from(i int) string      { return "ip saddr " + ip(i) + " " }
func to(i int) string        { return "ip daddr " + ip(i) + " " }
func cut(a, b int) string    { return from(a) + to(b) + "drop" }
func both(a, b int) []string { return []string{cut(a, b), cut(b, a)} }

// cutPort cuts off one TCP port: what others want of this host there, and what it wants of others.
func cutPort(i, port int) []string {
	var out []string
	for _, dir := range []string{from(i), to(i)} {
		for _, end := range []string{"dport", "sport"} {
			out = append(out, fmt.Sprintf("%stcp %s %d drop", dir, end, port))
		}
	}
	return out
}

func lose(i, percent int) []string {
	return []string{fmt.Sprintf("%snumgen random mod 100 < %d drop", from(i), percent), fmt.Sprintf("%snumgen random mod 100 < %d drop", to(i), percent)}
}

func sh(script string) error {
	out, err := exec.Command("bash", "-ec", script).CombinedOutput() //nolint:noctx // takes milliseconds
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.TrimSpace(script), err, out)
	}
	return nil
}

func newNetwork(hosts int) (*network, error) {
	var b strings.Builder
	b.WriteString("ip link add br0 type bridge\nip addr add " + controller + "/24 dev br0\nip link set br0 up\n")
	for i := range hosts {
		fmt.Fprintf(&b, "ip netns add %[1]s\nip -n %[1]s link set lo up\nip link add %[2]s type veth peer name eth0 netns %[1]s\nip link set %[2]s master br0 up\nip -n %[1]s addr add %[3]s/24 dev eth0\nip -n %[1]s link set eth0 up\n",
			host(i), swPort(i), ip(i))
	}
	if err := sh(b.String()); err != nil {
		return nil, fmt.Errorf("build the network: %w", err)
	}
	n := &network{rules: map[int][]string{}}
	return n, n.load()
}

func (n *network) set(fault int, rules []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rules[fault] = rules
	return n.load()
}

func (n *network) load() error {
	var b strings.Builder
	b.WriteString("table bridge chaos\ndelete table bridge chaos\ntable bridge chaos {\nchain c {\ntype filter hook forward priority 0;\n")
	for _, rules := range n.rules {
		b.WriteString(strings.Join(rules, "\n") + "\n")
	}
	b.WriteString("}\n}\n")
	cmd := exec.Command("nft", "-f", "-") //nolint:noctx // takes milliseconds
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s in\n%s", err, out, b.String())
	}
	return nil
}

func link(i int, state string) error { return sh("ip link set " + swPort(i) + " " + state) }

const (
	delayLeast, delayMore = 40 * time.Millisecond, 30 * time.Millisecond
)

// slow delays what other hosts send to this one: by netem where the kernel has it, else by a queue of packets and our own program, else it
// makes the way narrow instead.
func slow(i, fault int) (func() error, error) {
	unslow := func() error { return sh("tc qdisc del dev " + swPort(i) + " root") }
	if sh(fmt.Sprintf("tc qdisc replace dev %s root netem delay %dms %dms", swPort(i), (delayLeast+delayMore/2).Milliseconds(), (delayMore/2).Milliseconds())) == nil {
		return unslow, nil
	}
	queue := uint16(fault)            //nolint:gosec // some dozens
	rules := func(do string) string { // what we send passes
		return fmt.Sprintf("nsenter --net=%[1]s iptables -w 5 %[2]s INPUT -s 10.77.0.0/24 -j NFQUEUE --queue-num %[3]d --queue-bypass\nnsenter --net=%[1]s iptables -w 5 %[2]s INPUT -s %[4]s -j ACCEPT",
			nsFile(i), do, queue, controller)
	}
	if d, err := newDelayer(i, queue, delayLeast, delayMore); err == nil {
		if sh(rules("-I")) == nil {
			return func() error { err := sh(rules("-D")); d.close(); return err }, nil
		}
		d.close()
	}
	return unslow, sh("tc qdisc replace dev " + swPort(i) + " root tbf rate 1mbit burst 16kb latency 300ms")
}

// process is one of a host's.
type process struct {
	pid, parent int
	name, args  string
}

// processes are those whose network is the host's, zombies left out.
func processes(i int) ([]process, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(nsFile(i), &st); err != nil {
		return nil, fmt.Errorf("processes of %s: %w", host(i), err)
	}
	own := fmt.Sprintf("net:[%d]", st.Ino)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink("/proc/" + e.Name() + "/ns/net"); err != nil || ns != own {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		end := strings.LastIndexByte(string(stat), ')')
		if err != nil || end < 0 {
			continue
		}
		f := strings.Fields(string(stat[end+1:]))
		if len(f) < 2 || f[0] == "Z" {
			continue
		}
		p := process{pid: pid, name: string(stat[strings.IndexByte(string(stat), '(')+1 : end])}
		p.parent, _ = strconv.Atoi(f[1])
		args, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		p.args = strings.ReplaceAll(string(args), "\x00", " ")
		out = append(out, p)
	}
	return out, nil
}

// part finds an agent, a sentinel, a postmaster, a backend (the one numbered so among them) or everything of a host.
func part(all []process, what string, pick int) []process {
	server := map[int]bool{}
	for _, p := range all {
		server[p.pid] = p.name == "postgres"
	}
	out := slices.DeleteFunc(slices.Clone(all), func(p process) bool {
		switch what {
		case "agent":
			return !strings.Contains(p.args, " run --config ")
		case "sentinel":
			return !strings.Contains(p.args, " sentinel ")
		case "postmaster":
			return p.name != "postgres" || server[p.parent]
		case "backend":
			return p.name != "postgres" || !server[p.parent]
		}
		return false
	})
	if what == "backend" && len(out) > 0 {
		return out[pick%len(out) : pick%len(out)+1]
	}
	return out
}

func signalAll(ps []process, sig syscall.Signal) error {
	var errs []error
	for _, p := range ps {
		if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("%s to %d: %w", sig, p.pid, err))
		}
	}
	return errors.Join(errs...)
}
