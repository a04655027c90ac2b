package testkit

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"matriarch/pgmanager"
	"matriarch/pgmanager/pgtest"
)

// guardianOf is the environment variable that turns a copy of the test program into the guardian of a directory.
const guardianOf = "MATRIARCH_TESTKIT_GUARDIAN"

// root holds everything of one test program: the built programs, and a directory for each cluster.
var root string

// slots bounds how many clusters run at once: each has a dozen processes.
var slots = make(chan struct{}, 2)

// Main is for TestMain: it makes the root directory, posts the guardian and runs the tests.
func Main(m *testing.M) int {
	if dir := os.Getenv(guardianOf); dir != "" {
		guard(dir)
		return 0
	}
	flag.Parse()
	if testing.Short() {
		return m.Run()
	}
	if _, err := pgmanager.Find(pgtest.Bin()); err != nil {
		fmt.Fprintf(os.Stderr, "real PostgreSQL is needed here, `make deps` installs it: %v\n", err)
		return 1
	}
	var err error
	if root, err = os.MkdirTemp("/tmp", "matriarch-e2e-"); err == nil {
		err = os.Chmod(root, 0o755) //nolint:gosec // PostgreSQL's own user passes through it
	}
	var release func()
	if err == nil {
		release, err = postGuardian(root)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		return 1
	}
	go watchCPU()
	code := m.Run()
	release()
	return code
}

// postGuardian starts a process that ends everything below dir as soon as this one is gone, however it went.
func postGuardian(dir string) (release func(), err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), guardianOf+"="+dir)
	cmd.Stdin, cmd.Dir = r, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the guardian: %w", err)
	}
	return func() { _ = w.Close(); _ = cmd.Wait() }, nil
}

func guard(dir string) {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	_, _ = io.Copy(io.Discard, os.Stdin)
	for range 50 {
		left := processesOf(dir)
		if len(left) == 0 {
			break
		}
		killTogether(left)
	}
	if os.Getenv("MATRIARCH_KEEP") == "" {
		_ = os.RemoveAll(dir)
	}
}

var (
	building sync.Mutex
	built    = map[string]string{}
)

// Program is the path of the program under test, built on first use.
func Program(t testing.TB) string {
	t.Helper()
	if bin := os.Getenv("MATRIARCH_BIN"); bin != "" {
		return bin
	}
	return Build(t, "v1.0.0-test")
}

// Build builds the program with a version of its own.
func Build(t testing.TB, version string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	if path, ok := built[version]; ok {
		return path
	}
	path := filepath.Join(root, "matriarch-"+version)
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", "hashicorpmetrics", "-ldflags", "-X main.version="+version, "-o", path, "matriarch/cmd/matriarch")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	built[version] = path
	return path
}

// Result is what a run of the command line left.
type Result struct {
	Code int
	Out  string // standard output
	Err  string // standard error
}

// CLI runs the program to its end.
func CLI(t testing.TB, args ...string) Result {
	t.Helper()
	return cli(t, Program(t), "", args...)
}

func cli(t testing.TB, bin, stdin string, args ...string) Result {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin, args...)
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s %s: %v", bin, strings.Join(args, " "), err)
	}
	return Result{Code: cmd.ProcessState.ExitCode(), Out: out.String(), Err: errs.String()}
}

// BuildOf builds the program as a commit has it. It skips the test where the commit is not to be had: in a shallow clone, or in
// sources without their history.
func BuildOf(t testing.TB, commit, version string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	if path, ok := built[commit]; ok {
		return path
	}
	top, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err == nil {
		err = exec.Command("git", "cat-file", "-e", commit+"^{commit}").Run()
	}
	if err != nil {
		t.Skipf("commit %s is not here: a clone with its whole history is needed to build the version before", commit)
	}
	sources, path := filepath.Join(root, "sources-"+commit), filepath.Join(root, "matriarch-"+commit)
	script := `git -C "$1" archive "$2" | tar -x -C "$3"`
	if err := os.Mkdir(sources, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("bash", "-eo", "pipefail", "-c", script, "-", strings.TrimSpace(string(top)), commit, sources).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", commit, err, out)
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", "hashicorpmetrics", "-ldflags", "-X main.version="+version, "-o", path, "./cmd/matriarch")
	cmd.Dir, cmd.Env = sources, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", commit, err, out)
	}
	built[commit] = path
	return path
}
