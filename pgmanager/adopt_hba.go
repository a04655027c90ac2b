package pgmanager

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"

	"matriarch/pgmanager/pgconf"
)

// Our lines in a file of the user's stand between these.
const (
	blockBegin = "# BEGIN matriarch\n"
	blockEnd   = "# END matriarch\n"
)

// withBlock returns content with our block at its top, where the first matching line counts, or without one when block is empty.
func withBlock(content, block []byte) []byte {
	if before, rest, ok := bytes.Cut(content, []byte(blockBegin)); ok {
		if _, after, ok := bytes.Cut(rest, []byte(blockEnd)); ok {
			content = append(bytes.Clone(before), after...)
		}
	}
	if len(block) == 0 {
		return content
	}
	return bytes.Join([][]byte{[]byte(blockBegin), block, []byte(blockEnd), content}, nil)
}

// adopted is what has to be known of an adopted server for longer than its adoption takes.
type adopted struct {
	ConfigFile string `json:"config_file,omitempty"` // postgresql.conf, when it is not in the data directory
	HBAFile    string `json:"hba_file,omitempty"`    // that the running server goes by, until its next start
}

func adoptedFile(c Config) string { return filepath.Join(c.RunDir, "adopted.json") }

// readAdopted reads the record; a missing one is empty.
func readAdopted(c Config) (a adopted, err error) {
	b, err := os.ReadFile(adoptedFile(c))
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil {
		return a, fmt.Errorf("read the record of the adopted server %s: %w", adoptedFile(c), err)
	}
	return a, nil
}

func (m *Manager) saveAdopted(a Adoption) error {
	rec := adopted{HBAFile: a.HBAFile}
	if a.ConfigFile != filepath.Join(m.cfg.DataDir, "postgresql.conf") {
		rec.ConfigFile = a.ConfigFile
	}
	return m.writeAdopted(rec)
}

func (m *Manager) writeAdopted(a adopted) error {
	b, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the record of the adopted server: %w", err)
	}
	if err := m.makeDir(m.cfg.RunDir, 0o700); err != nil {
		return err
	}
	return m.replace(adoptedFile(m.cfg), append(b, '\n'), 0o600)
}

// forgetAdopted takes back an adoption that failed.
func (m *Manager) forgetAdopted() error {
	err := m.leaveHBA()
	if pid, ok := m.RunningPostmaster(); ok {
		err = errors.Join(err, m.hangUp(pid))
	}
	return errors.Join(err, os.Remove(adoptedFile(m.cfg)))
}

// admit keeps our block in the pg_hba.conf that an adopted server goes by: what the generated file would say, without the
// clients, who have their own lines there.
func (m *Manager) admit(w Conf) (changed bool, err error) {
	a, err := readAdopted(m.cfg)
	if err != nil || a.HBAFile == "" {
		return false, err
	}
	w.Phase = min(w.Phase, pgconf.Members)
	block := pgconf.RenderHBA(m.hba(w))
	return edit(a.HBAFile, func(b []byte) []byte { return withBlock(b, block) })
}

// keepAdopted makes an adopted server that still runs as it was started go by what Apply writes.
func (m *Manager) keepAdopted(w Conf) (changed bool, err error) {
	a, err := readAdopted(m.cfg)
	if err != nil || a.HBAFile == "" {
		return false, err
	}
	changed, err = m.admit(w)
	return changed, errors.Join(err, m.ensureInclude(m.cfg.DataDir))
}

// leaveHBA takes our block out of the user's pg_hba.conf, and out of the copy that a clone or rewind brought along: from its next
// start on the server goes by the generated file.
func (m *Manager) leaveHBA() error {
	a, err := readAdopted(m.cfg)
	if err != nil {
		return err
	}
	for _, path := range []string{a.HBAFile, filepath.Join(m.cfg.DataDir, "pg_hba.conf")} {
		if path == "" {
			continue
		}
		_, err := edit(path, func(b []byte) []byte { return withBlock(b, nil) })
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.log.Warn("our lines stay in the former pg_hba.conf", "path", path, "error", err)
		}
	}
	if a.HBAFile == "" {
		return nil
	}
	a.HBAFile = ""
	return m.writeAdopted(a)
}

// edit rewrites a file of the user's, which keeps its owner, mode and place.
func edit(path string, change func([]byte) []byte) (changed bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("edit %s: %w", path, err)
		}
	}()
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false, err
	}
	old, err := os.ReadFile(real)
	if err != nil {
		return false, err
	}
	text := change(old)
	if bytes.Equal(text, old) {
		return false, nil
	}
	st, err := os.Stat(real)
	if err != nil {
		return false, err
	}
	f, err := renameio.NewPendingFile(real, renameio.WithTempDir(filepath.Dir(real)), renameio.WithStaticPermissions(st.Mode().Perm()))
	if err != nil {
		return false, err
	}
	defer f.Cleanup() //nolint:errcheck // after success there is nothing to clean
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := f.Chown(int(sys.Uid), int(sys.Gid)); err != nil {
			return false, err
		}
	}
	if _, err := f.Write(text); err != nil {
		return false, err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return false, err
	}
	return true, syncDir(filepath.Dir(real))
}

// nobody stands for a pg_hba.conf without lines: no lines at all would mean our default, which is wider.
const nobody = "local all all reject"

// clientLines reads the user's lines: one string a line, without comments, with the files they name spelled from the root.
func clientLines(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read its client access rules: %w", err)
	}
	lines := hbaLines(string(withBlock(b, nil)), filepath.Dir(path))
	if len(lines) == 0 {
		lines = []string{nobody}
	}
	return lines, nil
}

var (
	hbaInclude = regexp.MustCompile(`^(include|include_if_exists|include_dir)\s+"?([^"/][^"]*?)"?$`)
	hbaAtFile  = regexp.MustCompile(`(^|[\s,])@([^\s,"/][^\s,"]*)`)
)

func hbaLines(text, dir string) []string {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\\\n", "")
	var out []string
	for l := range strings.SplitSeq(text, "\n") {
		l = strings.TrimSpace(withoutComment(l))
		if l == "" {
			continue
		}
		if f := hbaInclude.FindStringSubmatch(l); f != nil {
			l = f[1] + ` "` + filepath.Join(dir, f[2]) + `"`
		}
		out = append(out, hbaAtFile.ReplaceAllString(l, "${1}@"+strings.ReplaceAll(dir, "$", "$$")+"/${2}"))
	}
	return out
}

// withoutComment cuts a line at the first # outside of double quotes.
func withoutComment(l string) string {
	quoted := false
	for i, r := range l {
		switch {
		case r == '"':
			quoted = !quoted
		case r == '#' && !quoted:
			return l[:i]
		}
	}
	return l
}
