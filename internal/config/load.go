package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"github.com/google/renameio/v2"
	"go.yaml.in/yaml/v3"
)

// Load reads the file, completes it and validates it. The error names the file and, one a line, everything that is wrong with it.
func Load(path string) (Config, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Config{}, fmt.Errorf("read configuration: %w: make it with 'matriarch bootstrap' or 'matriarch join', or name another with --config", err)
	case errors.Is(err, fs.ErrPermission):
		return Config{}, fmt.Errorf("read configuration: %w: run as the owner of the file", err)
	case err != nil:
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	c, lines, err := parse(data, path)
	if err != nil {
		return Config{}, err
	}
	c = c.Complete()
	problems := c.problems()
	errs := make([]error, 0, len(problems))
	for _, p := range problems {
		at := path
		if line := lines.of(p.path); line > 0 {
			at = fmt.Sprintf("%s:%d", path, line)
		}
		errs = append(errs, fmt.Errorf("%s: %w", at, p))
	}
	return c, errors.Join(errs...)
}

// Free reports whether bootstrap or join may write this file: it is not there, or holds no setting, as the one that packages install.
func Free(path string) (bool, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read configuration: %w", err)
	}
	var doc yaml.Node
	return errors.Is(yaml.NewDecoder(bytes.NewReader(data)).Decode(&doc), io.EOF), nil
}

// Parse reads YAML over the defaults, without completing or validating it. name stands for the file in errors.
func Parse(data []byte, name string) (Config, error) {
	c, _, err := parse(data, name)
	return c, err
}

// Save validates the configuration and writes it atomically and durably with mode 0600, so that a crash leaves the old file or the new
// one. The directory must exist.
func (c Config) Save(path string) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("save configuration %s: %w", path, err)
	}
	var b bytes.Buffer
	b.WriteString("# Matriarch's configuration of this node; every key is explained in docs/configuration.md.\n")
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(c), enc.Close()); err != nil {
		return fmt.Errorf("save configuration %s: %w", path, err)
	}
	dir := filepath.Dir(path)
	if err := replace(path, b.Bytes()); err != nil {
		return fmt.Errorf("save configuration: %w: check that %s exists, is writable and has room", err, dir)
	}
	return syncDir(dir)
}

// replace does without renameio.WriteFile, which would keep the mode of an older file.
func replace(path string, data []byte) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.CloseAtomicallyReplace()
	}
	return errors.Join(err, f.Cleanup())
}

// syncDir makes a rename in dir survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("save configuration: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("save configuration: sync %s: %w", dir, err)
	}
	return nil
}

func parse(data []byte, name string) (Config, lineNumbers, error) {
	c := Default()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return c, nil, nil
	} else if err != nil {
		return c, nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return c, nil, fmt.Errorf("%s: more than one YAML document: keep one and remove the line '---' with what follows it", name)
	}
	ck := checker{file: name, lines: lineNumbers{}}
	ck.mapping(doc.Content[0], reflect.TypeFor[Config](), "")
	if len(ck.errs) > 0 {
		return c, nil, errors.Join(ck.errs...)
	}
	// The check above explains better; this one is what makes sure that nothing it let through is dropped.
	strict := yaml.NewDecoder(bytes.NewReader(data))
	strict.KnownFields(true)
	if err := strict.Decode(&c); err != nil {
		return c, nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, ck.lines, nil
}
