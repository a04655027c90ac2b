package proxy

import (
	"io"
	"net"
	"testing"
)

// BenchmarkRelay compares the relay with io.Copy, which keeps a pipe for each idle direction: a bulk transfer and a ping-pong of small messages.
func BenchmarkRelay(b *testing.B) {
	var n counters
	for name, forward := range map[string]func(dst, src *net.TCPConn){
		"relay":  func(dst, src *net.TCPConn) { _ = relay(dst, src, &n.toServer) },
		"iocopy": func(dst, src *net.TCPConn) { _, _ = io.Copy(dst, src) },
	} {
		b.Run("bulk/"+name, func(b *testing.B) {
			in, out := chain(b, forward)
			go func() { _, _ = io.Copy(io.Discard, out) }()
			block := make([]byte, 64<<10)
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				if _, err := in.Write(block); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("small/"+name, func(b *testing.B) {
			in, out := chain(b, forward)
			go func() {
				msg := make([]byte, 100)
				for {
					if _, err := io.ReadFull(out, msg); err != nil {
						return
					}
					_, _ = out.Write(msg)
				}
			}()
			msg := make([]byte, 100)
			for b.Loop() {
				_, _ = in.Write(msg)
				if _, err := io.ReadFull(in, msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// chain connects in and out through two connections with forward between them, both ways.
func chain(b *testing.B, forward func(dst, src *net.TCPConn)) (in, out *net.TCPConn) {
	b.Helper()
	pipe := func() (x, y *net.TCPConn) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		return c.(*net.TCPConn), s.(*net.TCPConn)
	}
	in, left := pipe()
	right, out := pipe()
	go forward(right, left)
	go forward(left, right)
	b.Cleanup(func() {
		for _, c := range []*net.TCPConn{in, left, right, out} {
			c.Close()
		}
	})
	return in, out
}
