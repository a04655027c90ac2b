package identity

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"matriarch/transport"
)

// rotating is a directory that trusts a next CA.
func rotating(t *testing.T) (d Dir, was, next string) {
	t.Helper()
	d, _ = filled(t)
	ca, err := transport.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	if was, err = d.CAFingerprint(); err != nil {
		t.Fatal(err)
	}
	if err := d.StageCA(ca.CertPEM(), key); err != nil {
		t.Fatal(err)
	}
	return d, was, ca.Fingerprint()
}

func (d Dir) trusts(t *testing.T) (all []string) {
	t.Helper()
	bundle, err := d.Trusted()
	if err != nil {
		t.Fatal(err)
	}
	if all, err = transport.Fingerprints(bundle); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func gone(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", path, err)
		}
	}
}

// TestPowerCutInRotation cuts the change of the CA off after each of its writes: the node still has a CA that signs, trusts both, and the
// rotation goes on from there, or back as long as nothing was signed.
func TestPowerCutInRotation(t *testing.T) {
	copies := [][2]func(Dir) string{
		{Dir.CAKeyFile, Dir.OldCAKeyFile}, {Dir.CAFile, Dir.OldCAFile}, {Dir.NextCAKeyFile, Dir.CAKeyFile}, {Dir.NextCAFile, Dir.CAFile},
	}
	const signs = 3 // from so many copies on the next one signs
	for cut := range len(copies) + 1 {
		prepare := func(t *testing.T) (Dir, string, string) {
			t.Helper()
			d, was, next := rotating(t)
			for _, f := range copies[:cut] {
				if err := copyFile(f[0](d), f[1](d)); err != nil {
					t.Fatal(err)
				}
			}
			return d, was, next
		}
		name := string(rune('0' + cut))
		t.Run("on after "+name, func(t *testing.T) {
			d, was, next := prepare(t)
			ca, err := d.CA()
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]string{false: was, true: next}[cut >= signs]; ca.Fingerprint() != want {
				t.Fatalf("%s signs, want %s", ca.Fingerprint(), want)
			}
			if all := d.trusts(t); len(all) != 2 {
				t.Fatalf("trusts %v", all)
			}
			if cas, err := d.CAs(); err != nil || len(cas) != 2 {
				t.Fatalf("%d CAs have a key: %v", len(cas), err)
			}
			old, err1 := d.OldCA()
			cert, err2 := os.ReadFile(map[bool]string{false: d.NextCAFile(), true: d.CAFile()}[cut >= signs])
			key, err3 := os.ReadFile(map[bool]string{false: d.NextCAKeyFile(), true: d.CAKeyFile()}[cut >= signs])
			if err := errors.Join(err1, err2, err3); err != nil || (old != "") != (cut >= signs) {
				t.Fatalf("old %q: %v", old, err)
			}
			// What 'matriarch ca rotate' asks for when it is run again.
			for _, step := range []func() error{
				func() error { return d.StageCA(cert, key) },
				func() error { return d.AdvanceCA(next) },
				func() error { return d.DropOldCA(next) },
				func() error { return d.DropOldCA(next) },
			} {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			if all := d.trusts(t); len(all) != 1 || all[0] != next {
				t.Errorf("trusts %v, want %s", all, next)
			}
			gone(t, d.NextCAFile(), d.NextCAKeyFile(), d.OldCAFile(), d.OldCAKeyFile())
		})
		t.Run("back after "+name, func(t *testing.T) {
			d, was, next := prepare(t)
			err := d.ForgetCA(next)
			if cut >= signs {
				if err == nil || !strings.Contains(err.Error(), "go on with 'matriarch ca rotate'") {
					t.Fatalf("forgot a CA that signs: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if all := d.trusts(t); len(all) != 1 || all[0] != was {
				t.Errorf("trusts %v, want %s", all, was)
			}
			gone(t, d.NextCAFile(), d.NextCAKeyFile())
			other, otherKey := authority(t)
			if err := d.StageCA(other, otherKey); err != nil {
				t.Errorf("another rotation: %v", err)
			}
		})
	}
	t.Run("while the old one is dropped", func(t *testing.T) {
		d, _, next := rotating(t)
		if err := errors.Join(d.AdvanceCA(next), remove(d.OldCAKeyFile())); err != nil {
			t.Fatal(err)
		}
		if old, err := d.OldCA(); err != nil || old == "" {
			t.Fatalf("nobody would finish it: old %q: %v", old, err)
		}
		if err := d.DropOldCA(next); err != nil {
			t.Fatal(err)
		}
		gone(t, d.OldCAFile(), d.OldCAKeyFile())
	})
}

// blocked makes a file one that cannot be removed, until free is called.
func blocked(t *testing.T, path string) (free func()) {
	t.Helper()
	if err := errors.Join(remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCutOffWhileRemoving ends the removal of a CA between its two files: a replaced one is still known, so that somebody finishes, and a
// staged one is trusted no more, since without its key it could never sign.
func TestCutOffWhileRemoving(t *testing.T) {
	t.Run("replaced", func(t *testing.T) {
		d, was, next := rotating(t)
		if err := d.AdvanceCA(next); err != nil {
			t.Fatal(err)
		}
		free := blocked(t, d.OldCAKeyFile())
		if err := d.DropOldCA(next); err == nil {
			t.Fatal("dropped a CA whose key cannot be removed")
		}
		if old, err := d.OldCA(); err != nil || old != was {
			t.Fatalf("nobody would finish it: old %q, want %q: %v", old, was, err)
		}
		free()
		if err := d.DropOldCA(next); err != nil {
			t.Fatal(err)
		}
		gone(t, d.OldCAFile(), d.OldCAKeyFile())
	})
	t.Run("staged", func(t *testing.T) {
		d, was, next := rotating(t)
		free := blocked(t, d.NextCAKeyFile())
		if err := d.ForgetCA(next); err == nil {
			t.Fatal("forgot a CA whose key cannot be removed")
		}
		if all := d.trusts(t); !slices.Equal(all, []string{was}) {
			t.Fatalf("trusts %v, want %s", all, was)
		}
		free()
		if err := d.StageCA(authority(t)); err != nil {
			t.Errorf("another rotation: %v", err)
		}
	})
}

func authority(t *testing.T) (cert, key []byte) {
	t.Helper()
	ca, err := transport.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if key, err = ca.KeyPEM(); err != nil {
		t.Fatal(err)
	}
	return ca.CertPEM(), key
}

// TestTwoRotations: a second one is refused in words, and possible once the first is forgotten.
func TestTwoRotations(t *testing.T) {
	d, _, next := rotating(t)
	cert, key := authority(t)
	if err := d.StageCA(cert, key); err == nil || !strings.Contains(err.Error(), "--abandon") {
		t.Fatal(err)
	}
	if err := d.ForgetCA("sha256:another"); err != nil {
		t.Fatal(err)
	}
	if staged, err := d.NextCA(); err != nil || staged != next {
		t.Fatalf("staged is %q after another was forgotten, want %q: %v", staged, next, err)
	}
	if err := errors.Join(d.ForgetCA(next), d.ForgetCA(next), d.StageCA(cert, key)); err != nil {
		t.Fatal(err)
	}
}

// TestRotationIsHandedOver: a node that joins in between is as far as the one that took it in, whatever it had before.
func TestRotationIsHandedOver(t *testing.T) {
	for _, signs := range []bool{false, true} {
		from, _, next := rotating(t)
		if signs {
			if err := from.AdvanceCA(next); err != nil {
				t.Fatal(err)
			}
		}
		to, _, _ := rotating(t)
		ca, err1 := os.ReadFile(from.CAFile())
		key, err2 := os.ReadFile(from.CAKeyFile())
		r, err3 := from.Rotation()
		err := errors.Join(err1, err2, err3, to.SaveMaterial(Material{CA: ca, CAKey: key}), to.SaveRotation(r))
		if err != nil {
			t.Fatal(err)
		}
		if want, got := from.trusts(t), to.trusts(t); !slices.Equal(want, got) {
			t.Errorf("trusts %v, want %v", got, want)
		}
		if err := errors.Join(to.AdvanceCA(next), to.DropOldCA(next)); err != nil {
			t.Error(err)
		}
		if all := to.trusts(t); len(all) != 1 || all[0] != next {
			t.Errorf("trusts %v at the end", all)
		}
	}
}
