package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"matriarch/fsm"
)

// client looks for its group's primary as a driver with several hosts does, and keeps its connection until it breaks.
type client struct {
	w     *World
	host  string
	group fsm.GroupID
	next  int
	conn  net.Conn
	value uint64
	acked int
	last  time.Time // of the last acknowledgement
}

const clientTimeout = 2 * time.Second

func (c *client) ask(ctx context.Context, q any) (result, error) {
	if c.conn == nil {
		if err := c.connect(ctx); err != nil {
			return result{}, err
		}
	}
	err := c.w.send(c.conn, q)
	var v any
	if err == nil {
		v, err = c.w.receive(c.conn, clientTimeout)
	}
	res, ok := v.(result)
	if err == nil && !ok {
		err = errors.New("refused")
	}
	if err == nil {
		err = res.err
	}
	if err != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
	return res, err
}

func (c *client) connect(ctx context.Context) error {
	var members []*machine
	for _, m := range c.w.machines {
		if m.group == c.group {
			members = append(members, m)
		}
	}
	c.next++
	dctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	conn, err := c.w.net.Host(c.host).Dial(dctx, members[c.next%len(members)].pgHost+":5432")
	if err != nil {
		return err
	}
	if err := c.w.send(conn, hello{kind: "client"}); err != nil {
		_ = conn.Close()
		return err
	}
	c.conn = conn
	return nil
}

// run writes numbers, or reads all of them, until ctx ends.
func (c *client) run(ctx context.Context, every time.Duration, writes bool) {
	defer func() {
		if c.conn != nil {
			_ = c.conn.Close()
		}
	}()
	for pause(ctx, every) == nil {
		var q any = read{}
		if writes {
			c.value++
			q = write{c.value}
		}
		if _, err := c.ask(ctx, q); err == nil {
			c.w.mu.Lock()
			c.acked++
			c.last = time.Now()
			c.w.mu.Unlock()
		}
	}
}

func (w *World) startClients(ctx context.Context, groups int) []*client {
	var writers []*client
	for g := range groups {
		writer := &client{w: w, host: fmt.Sprint("c", g), group: fsm.GroupID(g), value: uint64(g+1) * 1_000_000}
		reader := &client{w: w, host: fmt.Sprint("r", g), group: fsm.GroupID(g)}
		w.background.Go(func() { writer.run(ctx, 40*time.Millisecond, true) })
		w.background.Go(func() { reader.run(ctx, 400*time.Millisecond, false) })
		writers = append(writers, writer)
	}
	return writers
}
