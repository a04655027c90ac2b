package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"matriarch/pgmanager/pgconf"
)

// ErrNoPostgres means that no usable PostgreSQL is installed.
var ErrNoPostgres = errors.New("no PostgreSQL found")

// Tools are PostgreSQL's programs, all of one folder: clients of another version than the server's do not work with it.
type Tools struct {
	Dir     string
	Version pgconf.Version
}

// Path returns the full path of one program.
func (t Tools) Path(name string) string { return filepath.Join(t.Dir, name) }

var needed = []string{"postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata"}

var usualPlaces = []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"}

// Find returns the programs in binDir; when it is empty, the newest of the distribution's places and PATH. The error
// says what to install.
func Find(binDir string) (Tools, error) { return findFor(binDir, 0) }

// findFor prefers the major version that a data directory needs; 0 means the newest.
func findFor(binDir string, major int) (Tools, error) {
	if binDir != "" {
		t, err := inspect(binDir)
		if err == nil && major != 0 && t.Version.Major() != major {
			err = fmt.Errorf("the data directory is of PostgreSQL %d, the programs in %s are %s: name the folder of version %d with --pg-bin", major, binDir, t.Version, major)
		}
		return t, err
	}
	return search(usualPlaces, os.Getenv("PATH"), major)
}

func search(places []string, path string, major int) (Tools, error) {
	var dirs []string
	for _, p := range places {
		found, _ := filepath.Glob(p)
		dirs = append(dirs, found...)
	}
	dirs = append(dirs, filepath.SplitList(path)...)
	var best Tools
	var reasons []error
	for _, d := range dirs {
		if _, err := os.Stat(filepath.Join(d, "postgres")); err != nil {
			continue
		}
		t, err := inspect(d)
		switch {
		case err != nil:
			reasons = append(reasons, err)
		case major != 0 && t.Version.Major() != major:
			reasons = append(reasons, fmt.Errorf("%s holds %s, the data directory needs %d", d, t.Version, major))
		case t.Version > best.Version:
			best = t
		}
	}
	if best.Dir != "" {
		return best, nil
	}
	want := fmt.Sprintf("%d to %d", pgconf.OldestMajor, pgconf.NewestMajor)
	example := pgconf.NewestMajor - 1
	if major != 0 {
		want, example = fmt.Sprint(major), major
	}
	err := fmt.Errorf("%w: looked for version %s in %s and PATH; install it (Debian, Ubuntu: apt-get install postgresql-%d; RHEL, Fedora: dnf install postgresql%d-server) or name its folder with --pg-bin",
		ErrNoPostgres, want, strings.Join(places, ", "), example, example)
	return Tools{}, errors.Join(append([]error{err}, reasons...)...)
}

// inspect checks that a folder holds every program needed, of a version that is supported.
func inspect(dir string) (Tools, error) {
	missing := slices.DeleteFunc(slices.Clone(needed), func(n string) bool {
		st, err := os.Stat(filepath.Join(dir, n))
		return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
	})
	if len(missing) > 0 {
		return Tools{}, fmt.Errorf("%w: %s lacks %s: install the server package of the same version, or name another folder with --pg-bin",
			ErrNoPostgres, dir, strings.Join(missing, ", "))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) //nolint:forbidigo // bounds a program that only prints its version
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return Tools{}, fmt.Errorf("ask %s for its version: %w", filepath.Join(dir, "postgres"), err)
	}
	v, err := pgconf.ParseVersion(strings.TrimSpace(string(out)))
	if err != nil {
		return Tools{}, err
	}
	if !v.Supported() {
		return Tools{}, fmt.Errorf("%w: %s holds version %s; %d to %d work", ErrNoPostgres, dir, v, pgconf.OldestMajor, pgconf.NewestMajor)
	}
	return Tools{Dir: dir, Version: v}, nil
}
