package testkit

import (
	"os"
	"os/user"
	"strconv"
	"syscall"
	"testing"
)

// AsPostgres makes a child run as PostgreSQL's own user, which it insists on; nothing is changed when this is not root.
func AsPostgres(t testing.TB) *syscall.SysProcAttr { return As(t, "postgres") }

// As makes a child run as another user when this is root.
func As(t testing.TB, name string) *syscall.SysProcAttr {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid := IDs(t, name)
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
}

// IDs are a user's numbers.
func IDs(t testing.TB, name string) (uid, gid uint32) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	a, err1 := strconv.ParseUint(u.Uid, 10, 32)
	b, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatalf("user %s has numbers %s and %s", name, u.Uid, u.Gid)
	}
	return uint32(a), uint32(b)
}
