package identity

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// secret is what no file of the repository may hold: a private key with its body, or a whole join token.
var secret = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----[\r\n]+[A-Za-z0-9+/=]{40,}|mt1\.[A-Za-z0-9_-]{120,}`)

func TestNoSecretIsCommitted(t *testing.T) {
	root := filepath.Join("..", "..")
	out, err := exec.Command("git", "-C", root, "ls-files", "-z").Output()
	if err != nil {
		t.Skip("no git checkout: ", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			continue // deleted, not committed yet
		}
		if found := secret.Find(b); found != nil {
			t.Errorf("%s holds what looks like a secret: %.40q: remove it, and replace it where it is in use", name, bytes.TrimSpace(found))
		}
	}
	made := "-----BEGIN PRIVATE " + "KEY-----\n" + strings.Repeat("A", 64)
	if !secret.MatchString(made) {
		t.Error("a key would not be found")
	}
}
