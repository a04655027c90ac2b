package doctor

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Machine is how the host is looked at, as far as tests put another in its place.
type Machine interface {
	// ReadFile reads a file of /proc, /sys or the configuration.
	ReadFile(path string) ([]byte, error)
	// Output runs a program, as that user if one is given and we may, and returns its standard output.
	Output(ctx context.Context, as, program string, args ...string) (string, error)
	// Lookup finds the addresses of a name.
	Lookup(ctx context.Context, name string) ([]string, error)
	// Dial opens and closes a connection.
	Dial(ctx context.Context, network, addr string) error
	// Listen opens and closes a port.
	Listen(addr string) error
}

// Local is this host.
type Local struct{}

const commandLimit = 5 * time.Second

// ReadFile is os.ReadFile.
func (Local) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

// Output waits five seconds at most.
func (Local) Output(ctx context.Context, as, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if as != "" && os.Getuid() == 0 {
		u, err := user.Lookup(as)
		if err != nil {
			return "", err
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return "", err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// Lookup asks as every program on the host would.
func (Local) Lookup(ctx context.Context, name string) ([]string, error) {
	return net.DefaultResolver.LookupHost(ctx, name)
}

// Dial connects.
func (Local) Dial(ctx context.Context, network, addr string) error {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return err
	}
	return c.Close()
}

// Listen listens for a moment.
func (Local) Listen(addr string) error {
	l, err := net.Listen("tcp", addr) //nolint:noctx // a look whether the port is free
	if err != nil {
		return err
	}
	return l.Close()
}
