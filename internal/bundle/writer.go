package bundle

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"time"
)

// Writer writes the archive, a tar.gz with all files below one folder.
type Writer struct {
	gz     *gzip.Writer
	tar    *tar.Writer
	folder string
	redact *Redactor
	now    time.Time
}

// NewWriter begins an archive on w.
func NewWriter(w io.Writer, folder string, redact *Redactor, now time.Time) *Writer {
	gz := gzip.NewWriter(w)
	return &Writer{gz: gz, tar: tar.NewWriter(gz), folder: folder, redact: redact, now: now}
}

// Add adds a file, without the secrets in it. The name is cleaned: it never leaves the folder.
func (w *Writer) Add(name string, content []byte) error {
	content = w.redact.Clean(content)
	h := &tar.Header{Name: path.Join(w.folder, path.Clean("/"+name)), Mode: 0o600, Size: int64(len(content)), ModTime: w.now, Format: tar.FormatPAX}
	if err := w.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("add %s to the archive: %w", name, err)
	}
	if _, err := w.tar.Write(content); err != nil {
		return fmt.Errorf("add %s to the archive: %w", name, err)
	}
	return nil
}

// Close ends the archive; it does not close what it was written to.
func (w *Writer) Close() error {
	if err := errors.Join(w.tar.Close(), w.gz.Close()); err != nil {
		return fmt.Errorf("end the archive: %w", err)
	}
	return nil
}
