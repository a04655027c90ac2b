package fence

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxConns    = 16
	helloWithin = 10 * time.Second // a connection without hello is closed after as long a silence
	writeWithin = time.Second
	outQueue    = 64
	maxSockPath = 107 // bytes, the kernel's limit
)

// server carries lines between connections and the loop. It knows no state of PostgreSQL.
type server struct {
	log      *slog.Logger
	ln       *net.UnixListener
	lock     *os.File
	requests chan incoming
	done     chan struct{}
	writers  sync.WaitGroup

	mu    sync.Mutex
	conns map[*conn]struct{}
}

// incoming is a request, or the news that the connection ended.
type incoming struct {
	c     *conn
	req   Request
	ended bool
}

// conn is one connection. Sending never waits: a peer that does not read is cut off.
type conn struct {
	nc *net.UnixConn

	mu     sync.Mutex
	out    chan []byte
	closed bool
}

// listen takes the lock, so that two sentinels never serve one socket, and replaces a socket that a dead one left.
func listen(path string, log *slog.Logger) (*server, error) {
	if len(path) > maxSockPath {
		return nil, fmt.Errorf("listen on %s: the path is longer than %d bytes, choose a shorter one", path, maxSockPath)
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the sentinel's socket: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("lock %s: another sentinel serves this socket: %w", lock.Name(), err)
	}
	_ = os.Remove(path)
	mask := unix.Umask(0o177)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(mask)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	s := &server{
		log: log, ln: ln, lock: lock, requests: make(chan incoming), done: make(chan struct{}),
		conns: map[*conn]struct{}{},
	}
	go s.accept()
	return s, nil
}

func (s *server) accept() {
	for {
		nc, err := s.ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, or the peer left early
			s.log.Warn("accept", "error", err)
			select {
			case <-s.done:
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if err := checkPeer(nc); err != nil {
			s.log.Warn("connection refused", "error", err)
			_ = nc.Close()
			continue
		}
		s.open(nc)
	}
}

// checkPeer admits the sentinel's own user and root.
func checkPeer(nc *net.UnixConn) error {
	raw, err := nc.SyscallConn()
	if err != nil {
		return fmt.Errorf("look at the peer: %w", err)
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return fmt.Errorf("look at the peer: %w", err)
	}
	if cerr != nil {
		return fmt.Errorf("look at the peer: %w", cerr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("peer %d has uid %d, want %d or root", cred.Pid, cred.Uid, os.Geteuid())
	}
	return nil
}

func (s *server) open(nc *net.UnixConn) {
	c := &conn{nc: nc, out: make(chan []byte, outQueue)}
	s.mu.Lock()
	full := len(s.conns) >= maxConns
	if !full {
		s.conns[c] = struct{}{}
		s.writers.Add(1)
	}
	s.mu.Unlock()
	if full {
		s.log.Warn("connection refused", "error", "too many connections")
		_ = nc.Close()
		return
	}
	go s.write(c)
	go s.read(c)
}

func (s *server) read(c *conn) {
	sc := bufio.NewScanner(c.nc)
	sc.Buffer(make([]byte, 0, 1024), MaxLine)
	hello := false
	for {
		var until time.Time
		if !hello {
			until = time.Now().Add(helloWithin)
		}
		if c.nc.SetReadDeadline(until) != nil || !sc.Scan() {
			break
		}
		var r Request
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			c.send(Response{ID: r.ID, Code: ErrInvalid, Error: "read request: " + err.Error()})
			break
		}
		hello = hello || r.Op == OpHello
		select {
		case s.requests <- incoming{c: c, req: r}:
		case <-s.done:
			return
		}
	}
	select {
	case s.requests <- incoming{c: c, ended: true}:
	case <-s.done:
	}
	c.shut()
}

func (s *server) write(c *conn) {
	defer s.writers.Done()
	for b := range c.out {
		if c.nc.SetWriteDeadline(time.Now().Add(writeWithin)) != nil {
			break
		}
		if _, err := c.nc.Write(b); err != nil {
			break
		}
	}
	_ = c.nc.Close()
	c.shut()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// close ends all connections once they have been sent what is queued.
func (s *server) close() {
	close(s.done)
	_ = s.ln.Close() // unlinks the socket
	s.mu.Lock()
	for c := range s.conns {
		c.shut()
	}
	s.mu.Unlock()
	s.writers.Wait()
	_ = s.lock.Close()
}

// send queues a message.
func (c *conn) send(m any) {
	b, err := encode(m)
	if err != nil {
		c.shut()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	select {
	case c.out <- b:
	default:
		c.closed = true
		close(c.out)
	}
}

// shut ends the connection after what is queued.
func (c *conn) shut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		close(c.out)
	}
}
