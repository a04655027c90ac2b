package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	// A server that refuses is asked again after this, doubled up to the second; a change of the source comes first.
	firstRetry, maxRetry = 50 * time.Millisecond, 500 * time.Millisecond

	// settling is how long after it was listed a server may still turn clients away by pg_hba.conf: its agent opens that file once it has seen in the
	// state that it may.
	settling = 2 * time.Second
)

var (
	errWaited   = errors.New("cannot connect now")       // WaitLimit is over
	errClient   = errors.New("client side")              // the client went away, or sent nonsense
	errIsCancel = errors.New("this is a cancel request") // after encryption was declined
	errGone     = fmt.Errorf("%w: it closed its connection while it waited", errClient)
)

// attach finds a server that takes the client's session. The first bytes have then been exchanged, and nothing is buffered here.
func (v *visit) attach() (*seat, *net.TCPConn, error) {
	limit := time.Now().Add(v.l.WaitLimit)
	over := time.NewTimer(v.l.WaitLimit)
	defer over.Stop()
	tried, pause, waiting := map[pair]bool{}, firstRetry, false
	var last error
	for {
		s, changed := v.l.roster.take(v.ctx, tried)
		if s != nil {
			server, err := v.try(s, limit)
			if err == nil {
				return s, server, nil
			}
			s.release()
			if v.ctx.Err() != nil || errors.Is(err, errClient) || errors.Is(err, errIsCancel) {
				return nil, nil, err
			}
			tried[s.pair()] = true
			if last == nil || time.Now().Before(limit) { // else the limit itself cut this try short, and an earlier answer says more
				last = fmt.Errorf("%s at %s: %w", s.Name, s.Addr, err)
			}
			continue
		}
		if !waiting {
			waiting = true
			v.l.count.waiting.Add(1)
			defer v.l.count.waiting.Add(-1)
		}
		var retry <-chan time.Time
		if len(tried) > 0 {
			retry = time.After(pause)
			pause = min(2*pause, maxRetry)
		}
		switch waited, err := v.wait(changed, retry, over.C); {
		case err != nil:
			return nil, nil, err
		case waited && last != nil:
			return nil, nil, fmt.Errorf("%w: waited %s for %s; last answer: %w", errWaited, v.l.WaitLimit, v.l.Kind.wanted(), last)
		case waited:
			return nil, nil, fmt.Errorf("%w: waited %s for %s, there is none", errWaited, v.l.WaitLimit, v.l.Kind.wanted())
		}
		clear(tried)
	}
}

// wait returns when it is worth trying again, or reports that the time is over. A client that leaves frees its place at once.
func (v *visit) wait(changed <-chan struct{}, retry, over <-chan time.Time) (bool, error) {
	gone, stop := watchHangup(v.ctx, v.client)
	defer stop()
	select {
	case <-changed:
	case <-retry:
	case <-over:
		return true, nil
	case <-gone:
		return false, errGone
	case <-v.ctx.Done():
		return false, v.ctx.Err()
	}
	return false, nil
}

// try connects to one server and plays the beginning of the session, up to the point of no return. An error that is not errClient leaves
// v.packet as what the next server has to be sent.
func (v *visit) try(s *seat, limit time.Time) (*net.TCPConn, error) {
	ctx, cancel := context.WithDeadline(s.ctx, v.soon(limit))
	defer cancel()
	server, err := v.l.connect(ctx, s.Addr)
	if err != nil {
		return nil, err
	}
	// Closed, not only interrupted: the client may be taking its time over its next packet.
	defer context.AfterFunc(s.ctx, func() { _ = server.Close() })()
	if err := v.greet(s, server, limit); err != nil {
		_ = server.Close()
		return nil, err
	}
	return server, nil
}

// soon is when the server must have answered.
func (v *visit) soon(limit time.Time) time.Time {
	if t := time.Now().Add(v.l.ConnectTimeout); t.Before(limit) {
		return t
	}
	return limit
}

func (v *visit) greet(s *seat, server *net.TCPConn, limit time.Time) error {
	for {
		if v.packet.opening == wantCancel {
			return errIsCancel
		}
		until(s.ctx, server, v.soon(limit))
		if _, err := server.Write(v.packet.raw); err != nil {
			return fmt.Errorf("send the startup packet: %w", err)
		}
		switch v.packet.opening {
		case wantTLS:
			return nil
		case wantSession:
			a, err := readAnswer(server)
			if err != nil {
				return err
			}
			if a.state == stateNotNow || a.state == stateNotLetIn && time.Since(s.since) < settling {
				return errors.New(a.message)
			}
			return v.send(a.raw)
		case wantEncryption:
			answer := make([]byte, 1)
			if _, err := server.Read(answer); err != nil {
				return fmt.Errorf("ask for encryption: %w", err)
			}
			if err := v.send(answer); err != nil || answer[0] != 'N' {
				return err
			}
			if err := v.next(); err != nil {
				return fmt.Errorf("%w: %w", errClient, err)
			}
		}
	}
}

func (v *visit) send(b []byte) error {
	until(v.ctx, v.client, time.Now().Add(v.l.StartupTimeout))
	if _, err := v.client.Write(b); err != nil {
		return fmt.Errorf("%w: %w", errClient, err)
	}
	return nil
}

// connect opens a connection to a server.
func (l *listener) connect(ctx context.Context, addr string) (*net.TCPConn, error) {
	c, err := l.dialer(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	server, ok := c.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("connect to %s: not a TCP connection but a %T", addr, c)
	}
	if err := l.prepare(server); err != nil {
		_ = server.Close()
		return nil, err
	}
	return server, nil
}
