package packages

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// tree is a Debian in an overlay of its own: what a test does in it touches nothing else.
type tree struct {
	t    *testing.T
	root string
}

const inTree = `set -e
mount -t overlay overlay -o lowerdir="$BASE",upperdir="$OVER/up",workdir="$OVER/work" "$OVER/root"
mount -t proc proc "$OVER/root/proc"
exec chroot "$OVER/root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive sh -c "$1" </dev/null`

func newTree(t *testing.T) *tree {
	t.Helper()
	over, err := os.MkdirTemp("/tmp", "matriarch-tree-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(over) })
	for _, d := range []string{"up", "work", "root"} {
		if err := os.Mkdir(filepath.Join(over, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &tree{t, over}
}

// run is a shell line in the tree.
func (tr *tree) run(line string) (string, error) {
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "bash", "-c", inTree, "_", line)
	base, err := filepath.Abs(os.Getenv("MATRIARCH_TREE"))
	if err != nil {
		tr.t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "BASE="+base, "OVER="+tr.root)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (tr *tree) must(line string, wants ...string) {
	tr.t.Helper()
	out, err := tr.run(line)
	if err != nil {
		tr.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			tr.t.Errorf("%s: no %q in\n%s", line, want, out)
		}
	}
}

// built is the one package that matches; without packages the test is not for now.
func built(t *testing.T, pattern string) string {
	t.Helper()
	dir := os.Getenv("MATRIARCH_PACKAGES")
	if dir == "" {
		t.Skip("MATRIARCH_PACKAGES names no directory of packages: run 'make packages-test'")
	}
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s in %s: %v, %v", pattern, dir, found, err)
	}
	return found[0]
}

// systemctl writes down what it is asked, and says that the node runs while /tmp/active is there.
const systemctl = `#!/bin/sh
echo "$@" >>/tmp/asked
[ "$1" != is-active ] || [ -e /tmp/active ]
`

func TestDebInstalledAndRemoved(t *testing.T) {
	deb := built(t, "matriarch_*_amd64.deb")
	if os.Getuid() != 0 || os.Getenv("MATRIARCH_TREE") == "" {
		t.Skip("needs root and MATRIARCH_TREE, a Debian tree: run 'make packages-test' as root")
	}
	tr := newTree(t)
	data, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"/tmp/m.deb": string(data), "/usr/local/sbin/systemctl": systemctl, "/run/systemd/system/x": ""} {
		file := filepath.Join(tr.root, "up", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}

	tr.must("dpkg -i /tmp/m.deb", "next 'matriarch doctor'")
	tr.must("matriarch version", "matriarch ", "protocol")
	tr.must("man -w matriarch; man -w matriarch-list; MANPAGER=cat man matriarch-config", "matriarch-list.8.gz", "settings")
	tr.must("id postgres; stat -c %a /etc/matriarch/matriarch.yml", "postgres", "600")
	tr.must("bash -n /usr/share/bash-completion/completions/matriarch")
	tr.must("grep ExecStart= /lib/systemd/system/matriarch.service", "/usr/bin/matriarch run")

	// A node begins its life, as bootstrap would: its file is written, its data is there, it runs.
	tr.must("echo 'listen: 10.0.0.1:7400' >/etc/matriarch/matriarch.yml; mkdir -p /var/lib/matriarch/pgdata; echo 15 >/var/lib/matriarch/pgdata/PG_VERSION; touch /tmp/active")
	tr.must("dpkg -i /tmp/m.deb; cat /etc/matriarch/matriarch.yml", "goes on with the old program", "listen: 10.0.0.1:7400")
	if out, err := tr.run("dpkg -r matriarch"); err == nil || !strings.Contains(out, "this node runs") {
		t.Errorf("removed under a running node: %v\n%s", err, out)
	}
	tr.must("matriarch version")

	tr.must("rm /tmp/active; dpkg -r matriarch", "/var/lib/matriarch stays")
	tr.must("! command -v matriarch; cat /etc/matriarch/matriarch.yml /var/lib/matriarch/pgdata/PG_VERSION", "listen: 10.0.0.1:7400", "15")
	tr.must("dpkg -P matriarch; cat /var/lib/matriarch/pgdata/PG_VERSION", "15")
	out, err := tr.run("cat /tmp/asked")
	if err != nil || strings.Contains(out, "start") || strings.Contains(out, "stop") || !strings.Contains(out, "daemon-reload") {
		t.Errorf("systemd was asked: %s, %v", out, err)
	}
}

func TestRPMHoldsTheSame(t *testing.T) {
	rpm, deb := built(t, "matriarch-*.x86_64.rpm"), built(t, "matriarch_*_amd64.deb")
	if _, err := exec.LookPath("rpm"); err != nil {
		t.Skip("no rpm here: apt-get install rpm")
	}
	list := func(line string) string {
		out, err := exec.Command("sh", "-c", line).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		return string(out)
	}
	inRPM := list("rpm -qlp '" + rpm + "' | sed 's|.*/||' | sort")
	inDeb := list("dpkg-deb -c '" + deb + "' | awk '!/\\/$/ {print $6}' | sed 's|.*/||' | sort")
	if inRPM != inDeb {
		t.Errorf("the rpm holds\n%s\nthe deb\n%s", inRPM, inDeb)
	}
	if got := list("rpm -qcp '" + rpm + "'"); got != "/etc/matriarch/matriarch.yml\n" {
		t.Errorf("configuration files: %s", got)
	}
	scripts := list("rpm -qp --scripts '" + rpm + "'")
	for _, want := range []string{"postinstall scriptlet", "preuninstall scriptlet", "postuninstall scriptlet"} {
		if !strings.Contains(scripts, want) {
			t.Errorf("no %s in\n%s", want, scripts)
		}
	}
}

// TestConfigurationNeverChanges: dpkg asks about a file that was changed here and in the package, and every node's is changed here.
func TestConfigurationNeverChanges(t *testing.T) {
	data, err := os.ReadFile("matriarch.yml")
	if err != nil {
		t.Fatal(err)
	}
	const want = "8e5c69ea2bfc401a568c14e5789886a78e8eba98c78caf3cd07caee9608a4266"
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want {
		t.Errorf("matriarch.yml has another sum, %x: keep it as it was, and put what is new into internal/config/sample.yaml", sum)
	}
}

// TestScriptsTouchNothing: no script may start or stop anything, nor delete.
func TestScriptsTouchNothing(t *testing.T) {
	for _, name := range []string{"postinst.sh", "prerm.sh", "postrm.sh"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			line = strings.TrimSpace(line)
			for _, word := range []string{"rm ", "kill", "systemctl start", "systemctl stop", "systemctl restart", "systemctl disable", "systemctl mask", "deluser", "userdel"} {
				if strings.Contains(line, word) && !strings.HasPrefix(line, "echo ") && !strings.HasPrefix(line, "#") {
					t.Errorf("%s: %s", name, line)
				}
			}
		}
	}
}

// TestNoSecretIsShipped: no private key, no join token and no example of either is in a package.
func TestNoSecretIsShipped(t *testing.T) {
	secret := regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----[\r\n]+[A-Za-z0-9+/=]{40,}|mt1\.[A-Za-z0-9_-]{120,}`)
	for _, pattern := range []string{"matriarch_*_amd64.deb", "matriarch_*_arm64.deb"} {
		data, err := exec.Command("dpkg-deb", "--fsys-tarfile", built(t, pattern)).Output()
		if err != nil {
			t.Fatal(err)
		}
		files := 0
		for tr := tar.NewReader(bytes.NewReader(data)); ; files++ {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			var content []byte
			if err == nil {
				content, err = io.ReadAll(tr)
			}
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(h.Name, ".gz") {
				if z, err := gzip.NewReader(bytes.NewReader(content)); err == nil {
					content, _ = io.ReadAll(z)
				}
			}
			if found := secret.Find(content); found != nil {
				t.Errorf("%s: %s holds what looks like a secret: %.40q", pattern, h.Name, found)
			}
		}
		if files < 20 {
			t.Errorf("%s: only %d files were looked at", pattern, files)
		}
	}
}
