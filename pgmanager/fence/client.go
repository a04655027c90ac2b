package fence

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ErrClosed is returned by every call on a connection that has ended.
var ErrClosed = errors.New("the connection to the sentinel has ended")

// eventQueue is how many events wait for a slow reader; then the oldest are dropped.
const eventQueue = 64

// Client is the agent's connection to the sentinel. Its methods may be called by several goroutines. A refusal is an *Error; every other error
// means that the outcome is unknown.
type Client struct {
	nc      net.Conn
	version string
	first   Status
	events  chan Event
	done    chan struct{}

	writing sync.Mutex
	mu      sync.Mutex
	id      uint64
	pending map[uint64]chan Response // nil once the connection ended
}

// Dial connects, says hello as the agent, and thereby ends the connection of any other agent.
func Dial(ctx context.Context, socket string) (*Client, error) {
	c, err := connect(ctx, socket)
	if err != nil {
		return nil, err
	}
	r, err := c.call(ctx, Request{Op: OpHello})
	if err == nil && r.Status == nil {
		err = errors.New("its answer has no status")
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("greet sentinel on %s: %w", socket, err)
	}
	c.version, c.first = r.Version, *r.Status
	return c, nil
}

// Peek asks for the status without becoming the agent.
func Peek(ctx context.Context, socket string) (Status, error) {
	c, err := connect(ctx, socket)
	if err != nil {
		return Status{}, err
	}
	defer c.Close()
	return c.Status(ctx)
}

func connect(ctx context.Context, socket string) (*Client, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("reach sentinel: %w", err)
	}
	c := &Client{nc: nc, events: make(chan Event, eventQueue), done: make(chan struct{}), pending: map[uint64]chan Response{}}
	go c.read()
	return c, nil
}

// Version returns the sentinel's version.
func (c *Client) Version() string { return c.version }

// Instance returns the random number that the sentinel drew when it started; leases belong to it.
func (c *Client) Instance() string { return c.first.Instance }

// Greeting returns the status at the time of Dial.
func (c *Client) Greeting() Status { return c.first }

// Events delivers what the sentinel pushes. The channel ends with event Closed; it keeps the newest 64 for a reader that is late.
func (c *Client) Events() <-chan Event { return c.events }

// Close ends the connection. PostgreSQL runs on.
func (c *Client) Close() error {
	err := c.nc.Close()
	<-c.done
	return err
}

// Status asks for the present status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return c.status(ctx, Request{Op: OpStatus})
}

// Ping returns nil if the loop that fences is alive.
func (c *Client) Ping(ctx context.Context) error { return c.plain(ctx, Request{Op: OpPing}) }

// SetDeadline moves the end of the lease.
func (c *Client) SetDeadline(ctx context.Context, d Deadline) error {
	return c.plain(ctx, Request{Op: OpDeadline, Deadline: &d})
}

// Start starts PostgreSQL as standby. It returns once the process exists.
func (c *Client) Start(ctx context.Context, r StartRequest) (Status, error) {
	return c.status(ctx, Request{Op: OpStart, Start: &r})
}

// Promote orders the promotion under epoch e and returns at once; event RoleChange tells that the server left recovery. It may be repeated.
func (c *Client) Promote(ctx context.Context, e Epoch) (Status, error) {
	return c.status(ctx, Request{Op: OpPromote, Epoch: &e})
}

// Stop stops PostgreSQL and returns when no process is left. If ctx ends earlier, the stop goes on.
func (c *Client) Stop(ctx context.Context, r StopRequest) (Status, error) {
	return c.status(ctx, Request{Op: OpStop, Stop: &r})
}

// Kill kills PostgreSQL and returns when no process is left. If ctx ends earlier, the kill goes on.
func (c *Client) Kill(ctx context.Context) (Status, error) {
	return c.status(ctx, Request{Op: OpKill})
}

// Adopt puts a running server under watch.
func (c *Client) Adopt(ctx context.Context, r AdoptRequest) (Status, error) {
	return c.status(ctx, Request{Op: OpAdopt, Adopt: &r})
}

// Watchdog sets the watchdog for the promotions to come. A sentinel of an older version answers ErrUnsupported.
func (c *Client) Watchdog(ctx context.Context, r WatchdogRequest) (Status, error) {
	return c.status(ctx, Request{Op: OpWatchdog, Watchdog: &r})
}

// Renounce makes sure that epoch e is never promoted here, so that its lease may be given back while a standby runs.
func (c *Client) Renounce(ctx context.Context, e Epoch) error {
	_, err := c.status(ctx, Request{Op: OpRenounce, Epoch: &e})
	return err
}

// Shutdown ends the sentinel, which refuses while a process of PostgreSQL is left.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.plain(ctx, Request{Op: OpShutdown})
}

func (c *Client) plain(ctx context.Context, r Request) error {
	if _, err := c.call(ctx, r); err != nil {
		return fmt.Errorf("sentinel %s: %w", r.Op, err)
	}
	return nil
}

func (c *Client) status(ctx context.Context, r Request) (Status, error) {
	resp, err := c.call(ctx, r)
	if err == nil && resp.Status == nil {
		err = errors.New("its answer has no status")
	}
	if err != nil {
		return Status{}, fmt.Errorf("sentinel %s: %w", r.Op, err)
	}
	return *resp.Status, nil
}

// call sends a request and waits for its answer.
func (c *Client) call(ctx context.Context, r Request) (Response, error) {
	answer := make(chan Response, 1)
	c.mu.Lock()
	if c.pending == nil {
		c.mu.Unlock()
		return Response{}, ErrClosed
	}
	c.id++
	r.ID = c.id
	c.pending[r.ID] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pending, r.ID)
		c.mu.Unlock()
	}()
	if err := c.write(r); err != nil {
		return Response{}, err
	}
	select {
	case resp := <-answer:
		return resp.result()
	case <-ctx.Done():
		return Response{}, ctx.Err()
	case <-c.done:
	}
	select {
	case resp := <-answer: // it came before the end
		return resp.result()
	default:
		return Response{}, ErrClosed
	}
}

// result separates the refusal from the answer.
func (r Response) result() (Response, error) {
	if r.Code != "" {
		return Response{}, &Error{Code: r.Code, Message: r.Error}
	}
	return r, nil
}

// write sends one line. A line sent in part would spoil the next, so every failure ends the connection.
func (c *Client) write(r Request) error {
	b, err := encode(r)
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	err = c.nc.SetWriteDeadline(time.Now().Add(writeWithin))
	if err == nil {
		_, err = c.nc.Write(b)
	}
	if err != nil {
		_ = c.nc.Close()
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return nil
}

func (c *Client) read() {
	sc := bufio.NewScanner(c.nc)
	sc.Buffer(make([]byte, 0, 1024), MaxLine)
	for sc.Scan() {
		var e Event // events and responses share no field but the status
		var r Response
		if json.Unmarshal(sc.Bytes(), &e) != nil || json.Unmarshal(sc.Bytes(), &r) != nil {
			break
		}
		if e.Kind != "" {
			c.push(e)
			continue
		}
		c.mu.Lock()
		answer := c.pending[r.ID]
		delete(c.pending, r.ID)
		c.mu.Unlock()
		if answer != nil {
			answer <- r
		}
	}
	_ = c.nc.Close()
	c.mu.Lock()
	c.pending = nil
	c.mu.Unlock()
	close(c.done)
	reason := "the sentinel closed the connection"
	if err := sc.Err(); err != nil {
		reason = err.Error()
	}
	c.push(Event{Kind: Closed, Reason: reason})
	close(c.events)
}

// push drops the oldest event when nobody reads. Only read calls it.
func (c *Client) push(e Event) {
	for {
		select {
		case c.events <- e:
			return
		default:
		}
		select {
		case <-c.events:
		default:
		}
	}
}
