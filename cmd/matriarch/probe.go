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
)

// probe looks whether the primary that this node follows lives: its port is opened and asked something that only a living
// postmaster can answer, and the walreceiver knows when it last heard of it.
func (n *node) probe(ctx context.Context, r probeRequest) (decide.Probe, error) {
	p, known := n.consensus.State().Nodes[r.Primary]
	if !known {
		return decide.Probe{}, errors.New("probe the primary: it is not a node of this cluster")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if rec := n.pg.Observe(ctx).Receiver; rec != nil && rec.LastMsgAge < quiet {
		return decide.Probe{Text: fmt.Sprintf("heard of it %d ms ago", rec.LastMsgAge.Milliseconds())}, nil
	}
	if err := answers(ctx, n.cfg.Listen, p.Postgres); err != nil {
		return decide.Probe{Dead: true, Text: "its port: " + shortly(err)}, nil
	}
	return decide.Probe{Text: "its port answers"}, nil
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
