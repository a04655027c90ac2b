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
	rows  int // as the group's, when last asked
	acked int
	last  time.Time // of the last acknowledgement
	fails []string  // what it was told instead, and when
}

const (
	clientTimeout = 2 * time.Second
	waitLimit     = 25 * time.Second // for the end of a pause
	goOnLimit     = 3 * time.Second  // after it, as long as the server does not let anybody in
)

var errRefused = errors.New("not let in")

// ask waits while clients are made to wait. Then it goes where the rows point, and tries again while that server lets nobody in.
func (c *client) ask(ctx context.Context, q any) (result, error) {
	aim := c.enter(ctx)
	defer c.leave()
	if aim != nil {
		c.drop()
	}
	for limit := time.Now().Add(goOnLimit); ; {
		res, err := c.try(ctx, aim, q)
		if aim == nil || !errors.Is(err, errRefused) || time.Now().After(limit) || pause(ctx, 10*time.Millisecond) != nil {
			return res, err
		}
	}
}

// enter waits for the end of a pause. It returns a server when the rows were written since it was last asked.
func (c *client) enter(ctx context.Context) *machine {
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.group(c.group)
	wctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	for h := g.held; h != nil && wctx.Err() == nil; h = g.held {
		w.mu.Unlock()
		select {
		case <-h.over:
		case <-wctx.Done():
		}
		w.mu.Lock()
	}
	g.asking++
	if c.rows == g.rows {
		return nil
	}
	c.rows = g.rows
	return g.row
}

func (c *client) leave() {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.group(c.group).asking--
}

func (c *client) drop() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

func (c *client) try(ctx context.Context, aim *machine, q any) (result, error) {
	if c.conn == nil {
		if err := c.connect(ctx, aim); err != nil {
			return result{}, fmt.Errorf("%w: %w", errRefused, err)
		}
	}
	err := c.w.send(c.conn, q)
	var v any
	if err == nil {
		v, err = c.w.receive(c.conn, clientTimeout)
	}
	res, ok := v.(result)
	if r, is := v.(refusal); is {
		err = fmt.Errorf("%w: %s", errRefused, r.why)
	} else if err == nil && !ok {
		err = errors.New("no answer")
	}
	if err == nil {
		err = res.err
	}
	if err != nil {
		c.drop()
	}
	return res, err
}

// connect goes to a certain server, or to the next.
func (c *client) connect(ctx context.Context, to *machine) error {
	if to == nil {
		var members []*machine
		for _, m := range c.w.machines {
			if m.group == c.group {
				members = append(members, m)
			}
		}
		c.next++
		to = members[c.next%len(members)]
	}
	dctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	conn, err := c.w.net.Host(c.host).Dial(dctx, to.pgHost+":5432")
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
	defer c.drop()
	for pause(ctx, every) == nil {
		var q any = read{}
		if writes {
			c.value++
			q = write{c.value}
		}
		_, err := c.ask(ctx, q)
		c.w.mu.Lock()
		if err == nil {
			c.acked++
			c.last = time.Now()
		} else if ctx.Err() == nil {
			c.fails = append(c.fails, fmt.Sprintf("%.3f %s: %v", time.Since(c.w.began).Seconds(), c.host, err))
		}
		c.w.mu.Unlock()
	}
}

func (w *World) startClients(ctx context.Context, groups int) []*client {
	var all []*client
	for g := range groups {
		writer := &client{w: w, host: fmt.Sprint("c", g), group: fsm.GroupID(g), value: uint64(g+1) * 1_000_000}
		reader := &client{w: w, host: fmt.Sprint("r", g), group: fsm.GroupID(g)}
		w.background.Go(func() { writer.run(ctx, 40*time.Millisecond, true) })
		w.background.Go(func() { reader.run(ctx, 400*time.Millisecond, false) })
		all = append(all, writer, reader)
	}
	return all
}
