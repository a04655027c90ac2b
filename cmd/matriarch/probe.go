package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"matriarch/fsm/decide"
)

const (
	probeTimeout = 500 * time.Millisecond
	// quiet is how long a walreceiver must have heard nothing for its primary to be suspected. An idle primary speaks less often:
	// then the port decides.
	quiet = 500 * time.Millisecond
	// stall is how late a host may be for its own clock before it cannot tell who else was.
	stall = 100 * time.Millisecond
)

// probe looks whether the primary that this node follows lives: its port is opened and asked something that only a living
// postmaster can answer, and the walreceiver knows when it last heard of it.
func (n *node) probe(ctx context.Context, r probeRequest) (decide.Probe, error) {
	p, known := n.consensus.State().Nodes[r.Primary]
	if !known {
		return decide.Probe{}, errors.New("probe the primary: it is not a node of this cluster")
	}
	port := func(ctx context.Context) error { return answers(ctx, n.cfg.Listen, p.Postgres) }
	return witness(ctx, port, func(ctx context.Context) (ago time.Duration, streams bool) {
		rec := n.pg.Observe(ctx).Receiver
		if rec == nil {
			return 0, false
		}
		return rec.LastMsgAge, true
	})
}

// witness asks port and walreceiver at the same time: a server of one's own that is slow to tell must not take the port's time.
func witness(ctx context.Context, port func(context.Context) error, heard func(context.Context) (time.Duration, bool)) (decide.Probe, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	alive := make(chan string, 1) // empty: not by the walreceiver
	go func() {
		if ago, streams := heard(ctx); streams && ago < quiet {
			alive <- fmt.Sprintf("heard of it %d ms ago", ago.Milliseconds())
		}
		close(alive)
	}()
	err := port(ctx)
	if err == nil {
		return decide.Probe{Text: "its port answers"}, nil
	}
	text := ""
	select {
	case text = <-alive:
	case <-ctx.Done():
		select { // what is known counts, however late the port was
		case text = <-alive:
		default:
		}
	}
	if text != "" {
		return decide.Probe{Text: text}, nil
	}
	if late := time.Since(began) - probeTimeout; late > stall {
		return decide.Probe{}, fmt.Errorf("probe the primary: this host stood still for %d ms and cannot tell", late.Milliseconds())
	}
	return decide.Probe{Dead: true, Text: "its port: " + shortly(err)}, nil
}

// answers sends PostgreSQL's question for encryption, which a postmaster's child answers with one byte.
func answers(ctx context.Context, from, addr string) error {
	var d net.Dialer
	if ip := sourceIP(from); ip != nil {
		d.LocalAddr = &net.TCPAddr{IP: ip}
	}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(end)
	}
	if _, err := c.Write([]byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}); err != nil {
		return err
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	return nil
}

// shortly says what is wrong without the addresses, which the reader knows.
func shortly(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Sprintf("no answer within %d ms", probeTimeout.Milliseconds())
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err.Error()
	}
	return err.Error()
}
