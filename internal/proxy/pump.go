package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// lingerTime is how long a side that is said goodbye to has to close its own end before its connection is dropped.
const lingerTime = time.Second

// pump copies both ways until the session is over. A client that has finished sending still gets its answers; a server that closes, a broken
// side or the end of ctx ends both directions at once. The connections stay open.
func pump(ctx context.Context, client, server *net.TCPConn, n *counters) error {
	_ = client.SetDeadline(time.Time{})
	_ = server.SetDeadline(time.Time{})
	type end struct {
		ofServer bool
		err      error
	}
	ends := make(chan end, 2)
	go func() { ends <- end{false, relay(server, client, &n.toServer)} }()
	go func() { ends <- end{true, relay(client, server, &n.toClient)} }()
	var cause error
	done := ctx.Done()
	stop := func(err error) {
		if cause == nil {
			cause = err
		}
		if ctx.Err() != nil { // then whatever broke did so for this reason
			cause = context.Cause(ctx)
		}
		done = nil
		_ = client.SetDeadline(past)
		_ = server.SetDeadline(past)
	}
	for left := 2; left > 0; {
		select {
		case e := <-ends:
			left--
			if !e.ofServer && e.err == nil {
				_ = server.CloseWrite()
				continue
			}
			stop(e.err)
		case <-done:
			stop(context.Cause(ctx))
		}
	}
	if cause != nil {
		return fmt.Errorf("copy: %w", cause)
	}
	return nil
}

// relay copies from src to dst, inside the kernel, until src has no more to send. It waits for bytes before it copies them, and so holds a pipe
// (two file descriptors, and memory that counts against a limit per user) only while bytes move, not for each idle session.
func relay(dst, src *net.TCPConn, n *atomic.Uint64) error {
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	for {
		ready, err := readable(raw)
		if err != nil || ready == 0 {
			return err
		}
		moved, err := io.CopyN(dst, src, int64(ready)) // splice(2)
		n.Add(uint64(moved))
		if err != nil {
			return err
		}
	}
}

// sysConn is the part of syscall.RawConn that waits.
type sysConn interface {
	Read(f func(fd uintptr) (done bool)) error
}

// readable waits until bytes can be read and returns how many, at least; none means that the peer has finished.
func readable(raw sysConn) (int, error) {
	var n int
	var failed error
	var peek [1]byte
	err := raw.Read(func(fd uintptr) bool {
		n, failed = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		if n > 0 || failed != nil {
			return true
		}
		n, _, failed = unix.Recvfrom(int(fd), peek[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err == nil {
		err = failed
	}
	return max(n, 0), err
}

// watchHangup closes gone when the client closes its connection. It reads nothing. After stop, which must be called, reading is possible again.
func watchHangup(ctx context.Context, client *net.TCPConn) (gone <-chan struct{}, stop func()) {
	hung, quit := make(chan struct{}), make(chan struct{})
	until(ctx, client, time.Time{})
	go func() {
		defer close(quit)
		raw, err := client.SyscallConn()
		if err != nil {
			return
		}
		n, err := readable(raw)
		if n == 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
			close(hung)
		}
	}()
	return hung, func() {
		_ = client.SetDeadline(past)
		<-quit
		until(ctx, client, time.Time{})
	}
}

// farewell closes connections so that what was sent arrives: it finishes sending, and reads away what still comes, since closing with bytes
// unread makes the kernel send a reset that would overtake it.
func farewell(conns ...*net.TCPConn) {
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			_ = c.SetDeadline(time.Now().Add(lingerTime))
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		})
	}
	wg.Wait()
}

func setUserTimeout(c *net.TCPConn, d time.Duration) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
	return errors.Join(err, failed)
}
