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
func (d Dir) OldCA() (string, error) { return fingerprintOf(d.OldCAFile()) }

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
	case signing == want:
		return nil
	case next != "" && next != want:
		return fmt.Errorf("another rotation of the CA is under way here, to %s: finish that one first with 'matriarch ca rotate'", next)
	}
	if old, err := d.OldCA(); err != nil || old != "" {
		return errors.Join(err, fmt.Errorf("the last rotation of the CA is not finished here, %s is still trusted: finish it with 'matriarch ca rotate'", old))
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
	if err := errors.Join(remove(d.NextCAFile()), remove(d.NextCAKeyFile())); err != nil {
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
	if err := errors.Join(remove(d.OldCAFile()), remove(d.OldCAKeyFile())); err != nil {
		return fmt.Errorf("drop the old CA: %w", err)
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
