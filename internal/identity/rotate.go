package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"matriarch/transport"
)

// NextCA is the fingerprint of the CA that will take over; "" when there is none.
func (d Dir) NextCA() (string, error) { return fingerprintOf(d.NextCAFile()) }

// OldCA is the fingerprint of the CA that was replaced and is still trusted; "" when there is none.
func (d Dir) OldCA() (string, error) {
	old, err := fingerprintOf(d.OldCAFile())
	if err != nil || old == "" {
		return "", err
	}
	signing, err := d.CAFingerprint()
	if err != nil || signing == old { // an AdvanceCA was cut off before it changed anything
		return "", err
	}
	return old, nil
}

func fingerprintOf(path string) (string, error) {
	b, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read CA certificate: %w", err)
	}
	return transport.Fingerprint(b)
}

// StageCA has a CA trusted beside the one that signs. Repeated it does nothing, also when that CA signs by now.
func (d Dir) StageCA(cert, key []byte) error {
	want, err := transport.Fingerprint(cert)
	if err != nil {
		return err
	}
	signing, err := d.CAFingerprint()
	if err != nil {
		return err
	}
	next, err := d.NextCA()
	switch {
	case err != nil:
		return err
	case signing == want || next == want:
		return nil
	case next != "" && next != want:
		return fmt.Errorf("another rotation of the CA is under way here, to %s: finish that one with 'matriarch ca rotate', or if no node shows its certificates yet, forget it with 'matriarch ca rotate --abandon'", next)
	}
	if old, err := d.OldCA(); err != nil {
		return err
	} else if old != "" {
		return fmt.Errorf("the last rotation of the CA is not finished here, %s is still trusted: finish it with 'matriarch ca rotate'", old)
	}
	if err := writeFile(d.NextCAKeyFile(), key); err != nil { // the certificate counts, so it comes last
		return fmt.Errorf("stage CA: %w", err)
	}
	if err := writeFile(d.NextCAFile(), cert); err != nil {
		return fmt.Errorf("stage CA: %w", err)
	}
	return nil
}

// AdvanceCA makes the staged CA the one that signs; the present one stays trusted. Repeated it does nothing.
func (d Dir) AdvanceCA(fingerprint string) error {
	if err := d.finishAdvance(); err != nil {
		return err
	}
	signing, err := d.CAFingerprint()
	if err != nil || signing == fingerprint {
		return err
	}
	next, err := d.NextCA()
	if err != nil {
		return err
	}
	if next != fingerprint {
		return fmt.Errorf("the CA %s is not trusted here yet: run 'matriarch ca rotate' again", fingerprint)
	}
	for _, f := range [][2]string{{d.CAKeyFile(), d.OldCAKeyFile()}, {d.CAFile(), d.OldCAFile()}, {d.NextCAKeyFile(), d.CAKeyFile()}} {
		if err := copyFile(f[0], f[1]); err != nil {
			return fmt.Errorf("change the CA: %w", err)
		}
	}
	return d.finishAdvance()
}

// finishAdvance ends an AdvanceCA that has come as far as the key: that is where it turns from undone to done.
func (d Dir) finishAdvance() error {
	if _, err := loadCA(d.NextCAFile(), d.CAKeyFile()); err != nil {
		return nil //nolint:nilerr // no staged CA, or the present one still has its key: there is nothing to finish
	}
	if err := copyFile(d.NextCAFile(), d.CAFile()); err != nil {
		return fmt.Errorf("change the CA: %w", err)
	}
	if err := d.removeNextCA(); err != nil {
		return fmt.Errorf("change the CA: %w", err)
	}
	return nil
}

// DropOldCA ends the trust in every CA but the one that signs, which has to be this one.
func (d Dir) DropOldCA(fingerprint string) error {
	ca, err := d.CA()
	if err != nil {
		return err
	}
	if ca.Fingerprint() != fingerprint {
		return fmt.Errorf("the CA %s does not sign here yet: run 'matriarch ca rotate' again", fingerprint)
	}
	if err := writeFile(d.CAFile(), ca.CertPEM()); err != nil { // a bundle from a join in between
		return fmt.Errorf("drop the old CA: %w", err)
	}
	if err := d.removeOldCA(); err != nil {
		return fmt.Errorf("drop the old CA: %w", err)
	}
	return nil
}

// ForgetCA ends the trust in a staged CA, if it is this one. One that signs already is not forgotten.
func (d Dir) ForgetCA(fingerprint string) error {
	if err := d.finishAdvance(); err != nil {
		return err
	}
	next, err := d.NextCA()
	if err != nil {
		return err
	}
	if signing, err := d.CAFingerprint(); err != nil {
		return err
	} else if signing == fingerprint {
		return fmt.Errorf("the CA %s signs here already: go on with 'matriarch ca rotate'", fingerprint)
	}
	if next != fingerprint {
		return nil
	}
	if err := d.removeNextCA(); err != nil {
		return fmt.Errorf("forget the staged CA: %w", err)
	}
	return nil
}

// removeNextCA begins with the certificate: left without its key it would be trusted and could never sign. removeOldCA begins with the key:
// while the certificate is there, a rotation that a power cut interrupted is known and goes on.
func (d Dir) removeNextCA() error { return removeAll(d.NextCAFile(), d.NextCAKeyFile()) }
func (d Dir) removeOldCA() error  { return removeAll(d.OldCAKeyFile(), d.OldCAFile()) }

func removeAll(paths ...string) error {
	for _, path := range paths {
		if err := remove(path); err != nil {
			return err
		}
	}
	return nil
}

// Rotation is the CA that will take over and the one that was replaced, where a replacement is under way, each with its key.
type Rotation struct {
	NextCert, NextKey, OldCert, OldKey []byte
}

// Rotation reads how far the replacement of the CA has come here.
func (d Dir) Rotation() (r Rotation, err error) {
	for _, f := range []struct {
		certFile, keyFile string
		cert, key         *[]byte
	}{{d.NextCAFile(), d.NextCAKeyFile(), &r.NextCert, &r.NextKey}, {d.OldCAFile(), d.OldCAKeyFile(), &r.OldCert, &r.OldKey}} {
		cert, err := readFile(f.certFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return r, fmt.Errorf("read the rotation of the CA: %w", err)
		}
		key, err := readFile(f.keyFile)
		if errors.Is(err, fs.ErrNotExist) { // on its way out
			continue
		}
		if err != nil {
			return r, fmt.Errorf("read the rotation of the CA: %w", err)
		}
		*f.cert, *f.key = cert, key
	}
	return r, nil
}

// SaveRotation makes this node as far as another is; what was staged or replaced here before is gone.
func (d Dir) SaveRotation(r Rotation) error {
	if err := errors.Join(d.removeNextCA(), d.removeOldCA()); err != nil {
		return fmt.Errorf("save the rotation of the CA: %w", err)
	}
	for _, f := range []struct {
		path string
		data []byte
	}{{d.NextCAKeyFile(), r.NextKey}, {d.NextCAFile(), r.NextCert}, {d.OldCAKeyFile(), r.OldKey}, {d.OldCAFile(), r.OldCert}} {
		if len(f.data) == 0 {
			continue
		}
		if err := writeFile(f.path, f.data); err != nil {
			return fmt.Errorf("save the rotation of the CA: %w", err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	b, err := readFile(from)
	if err != nil {
		return err
	}
	return writeFile(to, b)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// nextSuffix marks a password that is not in force everywhere yet.
const nextSuffix = ".next"

// StageSecrets keeps new passwords beside the ones in force.
func (d Dir) StageSecrets(secrets map[string]string) error {
	staged := map[string]string{}
	for name, s := range secrets {
		staged[name+nextSuffix] = s
	}
	return d.SaveSecrets(staged)
}

// StagedSecret is the new one of a name; "" when there is none.
func (d Dir) StagedSecret(name string) (string, error) {
	s, err := d.Secret(name + nextSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return s, err
}

// CommitSecrets puts the staged passwords in force. Repeated it does nothing.
func (d Dir) CommitSecrets(names ...string) error {
	for _, name := range names {
		err := os.Rename(d.SecretFile(name+nextSuffix), d.SecretFile(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("put secret %s in force: %w", name, err)
		}
	}
	return nil
}
