package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nfnetlink.h and nfnetlink_queue.h.
const (
	queuePacket, queueVerdict, queueConfig = 3 << 8, 3<<8 | 1, 3<<8 | 2

	attrConfig, attrParams, attrMaxLen, attrMask, attrFlags = 1, 2, 3, 4, 5

	packetHeader, verdictHeader = 1, 2

	failOpen, wholePackets = 1, 4 // what cannot be queued passes; large packets are not cut up
	accept                 = 1
)

// delayer holds back the packets that a host's firewall gives to a queue. It is for kernels without netem.
type delayer struct {
	fd        int
	queue     uint16
	delay     time.Duration
	jitter    time.Duration
	mu        sync.Mutex // of sending and closed
	closed    bool
	waitGroup sync.WaitGroup
}

func attribute(kind uint16, data ...byte) []byte {
	b := make([]byte, (4+len(data)+3)&^3)
	binary.NativeEndian.PutUint16(b, uint16(4+len(data))) //nolint:gosec // a few bytes
	binary.NativeEndian.PutUint16(b[2:], kind)
	copy(b[4:], data)
	return b
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func (d *delayer) send(kind uint16, attrs ...[]byte) error {
	b := make([]byte, 20)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	binary.BigEndian.PutUint16(b[18:], d.queue)
	for _, a := range attrs {
		b = append(b, a...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b))) //nolint:gosec // a few bytes
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	return unix.Sendto(d.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// inNetwork runs f in a host's network. Sockets stay where they were made.
func inNetwork(i int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open(nsFile(i))
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// newDelayer serves a queue of a host.
func newDelayer(host int, queue uint16, delay, jitter time.Duration) (*delayer, error) {
	d := &delayer{queue: queue, delay: delay, jitter: jitter}
	err := inNetwork(host, func() (err error) {
		if d.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		return unix.Bind(d.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	if err != nil {
		return nil, fmt.Errorf("queue of packets: %w", err)
	}
	_ = unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	err = errors.Join(
		d.send(queueConfig, attribute(attrConfig, 1, 0, 0, 0)),
		d.send(queueConfig, attribute(attrParams, 0, 0, 0, 40, 1)),
		d.send(queueConfig, attribute(attrMaxLen, be32(65535)...)),
		d.send(queueConfig, attribute(attrFlags, be32(failOpen|wholePackets)...), attribute(attrMask, be32(failOpen|wholePackets)...)),
		unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
	)
	if err != nil {
		_ = unix.Close(d.fd)
		return nil, fmt.Errorf("queue of packets: %w", err)
	}
	d.waitGroup.Go(d.serve)
	return d, nil
}

func (d *delayer) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.waitGroup.Wait()
	_ = unix.Close(d.fd) // the kernel drops what is queued; TCP sends it again
}

func (d *delayer) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

func (d *delayer) serve() {
	buf := make([]byte, 1<<20)
	for !d.isClosed() {
		n, _, err := unix.Recvfrom(d.fd, buf, 0)
		switch {
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return
		}
		for b := buf[:n]; len(b) >= 20; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < 20 || size > len(b) {
				break
			}
			if binary.NativeEndian.Uint16(b[4:]) == queuePacket {
				d.hold(b[20:size])
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// hold lets a packet go on after its time.
func (d *delayer) hold(attrs []byte) {
	for a := attrs; len(a) >= 8; {
		size := int(binary.NativeEndian.Uint16(a))
		if size < 4 || size > len(a) {
			return
		}
		if binary.NativeEndian.Uint16(a[2:])&0x7fff == packetHeader && size >= 8 {
			verdict := append(be32(accept), a[4:8]...)
			time.AfterFunc(d.delay+rand.N(d.jitter), func() { _ = d.send(queueVerdict, attribute(verdictHeader, verdict...)) })
			return
		}
		a = a[min((size+3)&^3, len(a)):]
	}
}
