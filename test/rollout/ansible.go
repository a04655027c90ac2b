package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// recap is the end of a playbook's output, summed over the hosts.
type recap struct{ changed, unreachable, failed int }

var recapLine = regexp.MustCompile(`(?m)^\S+\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)`)

func readRecap(out string) (r recap) {
	for _, m := range recapLine.FindAllStringSubmatch(out, -1) {
		for i, n := range []*int{&r.changed, &r.unreachable, &r.failed} {
			v, _ := strconv.Atoi(m[i+1])
			*n += v
		}
	}
	return r
}

// inventory writes the hosts as operators would name them.
func (b *bed) inventory(name string, hosts []*host, extra ...string) (string, error) {
	var t strings.Builder
	fmt.Fprintf(&t, "matriarch:\n  vars:\n    ansible_user: root\n    ansible_ssh_private_key_file: %[1]s/key\n    ansible_ssh_common_args: %[2]q\n    matriarch_binary: %[1]s/matriarch\n    matriarch_postgresql_source: installed\n    matriarch_config:\n      postgresql:\n        hba: [\"host all all 10.77.0.254/32 scram-sha-256\"]\n",
		b.dir, strings.Join(b.sshFlags(), " "))
	for _, line := range extra {
		fmt.Fprintf(&t, "    %s\n", line)
	}
	t.WriteString("  hosts:\n")
	for _, h := range hosts {
		major, citus := 15, "none"
		if h.suite == "trixie" {
			major = 17
		} else if b.citus {
			citus = "installed"
		}
		fmt.Fprintf(&t, "    %s:\n      ansible_host: %s\n      matriarch_group: %d\n      matriarch_zone: zone-%d\n      matriarch_postgresql_version: %d\n      matriarch_citus_source: %s\n",
			h.name, h.ip(), h.group, h.n%3, major, citus)
	}
	path := filepath.Join(b.dir, name+".yml")
	return path, os.WriteFile(path, []byte(t.String()), 0o600)
}

// play runs a playbook; its output is kept in a file.
func (b *bed) play(ctx context.Context, inventory, playbook string, args ...string) (recap, error) {
	b.begun++
	args = append([]string{"-i", inventory, filepath.Join("deploy/ansible", playbook+".yml")}, args...)
	cmd := exec.CommandContext(ctx, "ansible-playbook", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "ANSIBLE_CONFIG=deploy/ansible/ansible.cfg", "ANSIBLE_HOME="+b.dir+"/ansible", "ANSIBLE_LOCAL_TEMP="+b.dir+"/ansible/tmp",
		"ANSIBLE_SSH_CONTROL_PATH_DIR="+b.dir+"/cp", "ANSIBLE_NOCOLOR=1", "ANSIBLE_FORKS=8", "PYTHONDONTWRITEBYTECODE=1")
	log := filepath.Join(b.out, fmt.Sprintf("%02d-%s.txt", b.begun, playbook))
	file, err := os.OpenFile(log, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return recap{}, err
	}
	cmd.Stdout, cmd.Stderr = file, file
	err = errors.Join(cmd.Run(), file.Close())
	out, rerr := os.ReadFile(log)
	if rerr != nil {
		return recap{}, rerr
	}
	if err != nil {
		err = fmt.Errorf("%s (see %s): %w%s", playbook, log, err, firstFailure(string(out)))
	}
	return readRecap(string(out)), err
}

func firstFailure(out string) string {
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "fatal:") || strings.HasPrefix(line, "ERROR") {
			return ": " + strings.TrimSpace(line[:min(len(line), 600)])
		}
	}
	return ""
}

// plain runs a playbook that must succeed on every host.
func (b *bed) plain(ctx context.Context, inventory, playbook string, args ...string) (recap, error) {
	r, err := b.play(ctx, inventory, playbook, args...)
	if err == nil && r.unreachable+r.failed > 0 {
		err = errors.New("hosts failed")
	}
	return r, err
}

// secrets looks for anything in the playbooks' output that must not be there.
func (b *bed) secrets(ctx context.Context, from *host) error {
	list, err := from.ssh(ctx, "find /var/lib/matriarch/secrets /var/lib/matriarch/pg/pass -type f -size -2k 2>/dev/null | while read f; do head -c 200 $f | head -1; done")
	if err != nil {
		return err
	}
	words := []string{"mt1."}
	for w := range strings.FieldsSeq(list) {
		if len(w) >= 20 && !strings.Contains(w, "---") {
			words = append(words, w)
		}
	}
	if len(words) < 2 {
		return errors.New("no secret found on the host: this check would find nothing")
	}
	logs, err := filepath.Glob(filepath.Join(b.out, "*.txt"))
	for _, file := range logs {
		text, rerr := os.ReadFile(file)
		err = errors.Join(err, rerr)
		for _, w := range words {
			if strings.Contains(string(text), w) {
				err = errors.Join(err, fmt.Errorf("%s holds a secret", file))
			}
		}
	}
	return err
}
