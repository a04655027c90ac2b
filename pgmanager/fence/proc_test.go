package fence

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	tail := " 1 2 3 34816 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"
	for _, c := range []struct {
		name, in string
		want     proc
		bad      bool
	}{
		{name: "plain", in: "42 (postgres) S" + tail, want: proc{pid: 42, ppid: 1, comm: "postgres", state: 'S', tty: 34816, start: 4711}},
		{name: "nasty name", in: "42 (a) R (b) c) Z" + tail, want: proc{pid: 42, ppid: 1, comm: "a) R (b) c", state: 'Z', tty: 34816, start: 4711}},
		{name: "empty", in: "", bad: true},
		{name: "short", in: "42 (postgres) S 1 2", bad: true},
		{name: "no number", in: "42 (postgres) S x" + tail, bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseStat([]byte(c.in))
			if (err != nil) != c.bad {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(proc{})); !c.bad && diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParsePidFile(t *testing.T) {
	full := "42\n/data\n1700000000\n5432\n/tmp\n\n  1 2\nstandby \n"
	got, err := parsePidFile(full)
	must(t, err)
	want := pidFile{pid: 42, dir: "/data", start: time.Unix(1700000000, 0), state: "standby"}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(pidFile{})); diff != "" {
		t.Error(diff)
	}
	early, err := parsePidFile("42\n/data\n1700000000\n5432\n")
	if err != nil || early.state != "" {
		t.Errorf("early file: %+v, %v", early, err)
	}
	for _, bad := range []string{"", "42\n", "x\n/data\n1\n", "42\n/data\ny\n"} {
		if _, err := parsePidFile(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestStartedAtOfOurselves(t *testing.T) {
	p, err := readProc(os.Getpid())
	must(t, err)
	if age := time.Since(p.startedAt()); age < -time.Second || age > time.Hour {
		t.Errorf("this process seems %v old", age)
	}
}

// A process is signalled by its identity: another one of the same pid is let alone.
func TestSignalChecksIdentity(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	must(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	p, err := readProc(cmd.Process.Pid)
	must(t, err)
	reused := p
	reused.start--
	must(t, reused.signal(unix.SIGKILL))
	if now, err := readProc(p.pid); err != nil || now.state == 'Z' {
		t.Fatalf("a process with another start time was killed: %+v, %v", now, err)
	}
	must(t, p.signal(unix.SIGKILL))
	if err := cmd.Wait(); err == nil {
		t.Error("sleep was not killed")
	}
	must(t, p.signal(unix.SIGKILL)) // gone: no error
}

// The scan recognises a directory by whatever path, and people's files of the same name elsewhere not.
func TestProcessesFindsByDirectory(t *testing.T) {
	base := t.TempDir()
	data, other, link := filepath.Join(base, "data"), filepath.Join(base, "other"), filepath.Join(base, "link")
	must(t, os.Mkdir(data, 0o700))
	must(t, os.Mkdir(other, 0o700))
	must(t, os.Symlink(data, link))
	var want int
	for _, dir := range []string{data, other} {
		cmd := exec.Command("sleep", "600")
		cmd.Dir, cmd.SysProcAttr = dir, &unix.SysProcAttr{Setsid: true}
		must(t, cmd.Start())
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		if dir == data {
			want = cmd.Process.Pid
		}
	}
	for _, path := range []string{data, link, data + "/"} {
		got, err := Processes(path)
		must(t, err)
		if diff := cmp.Diff([]int{want}, got); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

func TestRoots(t *testing.T) {
	got := roots([]proc{{pid: 10, ppid: 1}, {pid: 11, ppid: 10}, {pid: 12, ppid: 11}, {pid: 20, ppid: 1}})
	want := map[int]proc{10: {pid: 10, ppid: 1}, 20: {pid: 20, ppid: 1}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(proc{})); diff != "" {
		t.Error(diff)
	}
}
