package pgmanager

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// osUser is the account that PostgreSQL runs under.
type osUser struct {
	name   string
	home   string
	uid    uint32
	gid    uint32
	groups []uint32
}

// lookupUser finds the account: the configured one, ours, or for root the data directory's owner or postgres.
func lookupUser(cfg Config) (osUser, error) {
	var u *user.User
	var err error
	switch {
	case cfg.User != "":
		u, err = user.Lookup(cfg.User)
	case os.Geteuid() != 0:
		u, err = user.Current()
	default:
		if uid, ok := owner(cfg.DataDir); ok && uid != 0 {
			u, err = user.LookupId(strconv.Itoa(int(uid)))
		} else {
			u, err = user.Lookup("postgres")
		}
	}
	if err != nil {
		return osUser{}, fmt.Errorf("find the OS user for PostgreSQL: %w; create it or name another in postgresql.user", err)
	}
	o, err := toOSUser(u)
	if err != nil {
		return osUser{}, err
	}
	if o.uid == 0 {
		return osUser{}, errors.New("run PostgreSQL as root: it refuses; name an ordinary one in postgresql.user")
	}
	if me := os.Geteuid(); me != 0 && o.uid != uint32(me) {
		return osUser{}, fmt.Errorf("run PostgreSQL as %s: we are uid %d; start matriarch as root or as %s", o.name, me, o.name)
	}
	return o, nil
}

func toOSUser(u *user.User) (osUser, error) {
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	ids, err3 := u.GroupIds()
	if err := errors.Join(err1, err2, err3); err != nil {
		return osUser{}, fmt.Errorf("read the account of OS user %s: %w", u.Username, err)
	}
	o := osUser{name: u.Username, home: u.HomeDir, uid: uint32(uid), gid: uint32(gid)}
	for _, id := range ids {
		if g, err := strconv.ParseUint(id, 10, 32); err == nil {
			o.groups = append(o.groups, uint32(g))
		}
	}
	return o, nil
}

// credential makes a child run as this account; nil when it is ours already.
func (o osUser) credential() *syscall.Credential {
	if os.Geteuid() == int(o.uid) {
		return nil
	}
	return &syscall.Credential{Uid: o.uid, Gid: o.gid, Groups: o.groups}
}

// own gives a file to the account.
func (o osUser) own(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, int(o.uid), int(o.gid))
}

func owner(path string) (uid uint32, ok bool) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return sys.Uid, true
}

// checkDataDir refuses a data directory that PostgreSQL would refuse to start from.
func (m *Manager) checkDataDir() error {
	st, err := os.Stat(m.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("check the data directory: %w", err)
	}
	if uid, ok := owner(m.cfg.DataDir); ok && uid != m.os.uid {
		return fmt.Errorf("data directory %s belongs to uid %d, PostgreSQL runs as %s (uid %d): chown -R %s %s, or name its owner in postgresql.user",
			m.cfg.DataDir, uid, m.os.name, m.os.uid, m.os.name, m.cfg.DataDir)
	}
	if perm := st.Mode().Perm(); perm&^0o750 != 0 {
		return fmt.Errorf("data directory %s has mode %04o, PostgreSQL demands 0700 or 0750: chmod 0700 %s", m.cfg.DataDir, perm, m.cfg.DataDir)
	}
	if _, err := os.Stat(filepath.Join(m.cfg.DataDir, "PG_VERSION")); err != nil {
		return fmt.Errorf("data directory %s holds no PostgreSQL cluster: %w", m.cfg.DataDir, err)
	}
	if major := m.dataMajor(); major != m.tools.Version.Major() {
		return fmt.Errorf("data directory %s is of PostgreSQL %d, the programs in %s are %s: name the right folder with --pg-bin",
			m.cfg.DataDir, major, m.tools.Dir, m.tools.Version)
	}
	return nil
}
