package transport

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// MaxRequest is the longest RPC request, in bytes of JSON.
	MaxRequest = 1 << 20
	// MaxAnswer is the longest RPC answer, in bytes of JSON.
	MaxAnswer = 16 << 20

	defaultCallTimeout = 10 * time.Second
	// maxCallTimeout bounds what a client may ask a handler to take.
	maxCallTimeout = 10 * time.Minute
	// timeoutHeader carries the caller's remaining time in milliseconds: clocks differ, durations do not.
	timeoutHeader = "Matriarch-Timeout-Ms"
)

// RPCServer answers calls of other nodes: HTTP/1.1 and JSON over KindRPC.
type RPCServer struct {
	log   *slog.Logger
	guard func(from Peer, call string) error
	names *http.ServeMux
	http  *http.Server
}

// Guard has every call asked whether its sender may make it; an error is the answer. Set it before Serve; without, all members may.
func (s *RPCServer) Guard(may func(from Peer, call string) error) { s.guard = may }

// NewRPCServer makes a server without calls; nil log discards.
func NewRPCServer(log *slog.Logger) *RPCServer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &RPCServer{log: log, names: http.NewServeMux()}
	s.names.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/rpc/")
		e := endpoint{name: "unknown", log: log, limit: MaxRequest, call: func(context.Context, net.Conn, []byte) (any, error) {
			return nil, &Error{Code: CodeNotFound, Message: fmt.Sprintf("this node knows no call %q", name), Hint: "upgrade it to the version of the caller"}
		}}
		e.ServeHTTP(w, r)
	})
	s.http = newHTTPServer(s.names, log)
	return s
}

// Register adds a call; names are letters, digits, dot and dash. Registering one twice panics. fn's ctx ends with the caller's
// deadline or connection. fn must be safe for concurrent use.
func Register[Req, Resp any](s *RPCServer, name string, fn func(ctx context.Context, from Peer, req Req) (Resp, error)) {
	e := &endpoint{name: name, log: s.log, limit: MaxRequest}
	e.call = func(ctx context.Context, c net.Conn, body []byte) (any, error) {
		from, ok := PeerOf(c)
		if !ok {
			return nil, &Error{Code: CodeRefused, Message: "calls need a node certificate"}
		}
		if s.guard != nil {
			if err := s.guard(from, name); err != nil {
				return nil, &Error{Code: CodeRefused, Message: err.Error()}
			}
		}
		req, err := decodeRequest[Req](body)
		if err != nil {
			return nil, err
		}
		return fn(ctx, from, req)
	}
	s.names.HandleFunc("POST /rpc/"+name, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), callTimeout(r.Header.Get(timeoutHeader)))
		defer cancel()
		e.ServeHTTP(w, r.WithContext(ctx))
	})
}

func callTimeout(header string) time.Duration {
	ms, err := strconv.ParseInt(header, 10, 64)
	if err != nil || ms <= 0 {
		return defaultCallTimeout
	}
	if ms > maxCallTimeout.Milliseconds() {
		return maxCallTimeout
	}
	return time.Duration(ms) * time.Millisecond
}

// Serve answers on l, normally Mux.Listener(KindRPC), until Close or until l is closed; then it returns nil.
func (s *RPCServer) Serve(l net.Listener) error {
	if err := serve(s.http, l); err != nil {
		return fmt.Errorf("serve RPC: %w", err)
	}
	return nil
}

// Shutdown stops accepting and waits for running calls until ctx ends.
func (s *RPCServer) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

// Close ends the server and its connections at once.
func (s *RPCServer) Close() error { return s.http.Close() }

// Client calls other nodes and keeps connections for reuse, one pool per address and node. Safe for concurrent use.
type Client struct {
	http *http.Transport
}

// NewClient makes a client that connects by d.
func NewClient(d *Dialer) *Client {
	return &Client{http: &http.Transport{
		DialContext: func(ctx context.Context, _, key string) (net.Conn, error) {
			addr, node, err := parsePoolKey(key)
			if err != nil {
				return nil, err
			}
			return d.Dial(ctx, KindRPC, addr, node)
		},
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     clientIdle,
		DisableCompression:  true,
	}}
}

// Call sends req to the call name of the node at addr and decodes the answer into resp (nil drops it). A node other than
// expectNodeID is refused with ErrOtherNode unless expectNodeID is empty. Without a deadline in ctx it takes at most 10 s.
// What the handler answered is found by errors.As with *Error; any other error leaves open whether the call was carried out.
func (c *Client) Call(ctx context.Context, addr, expectNodeID, name string, req, resp any) error {
	if err := c.call(ctx, addr, expectNodeID, name, req, resp); err != nil {
		return fmt.Errorf("call %s at %s: %w", name, addr, err)
	}
	return nil
}

func (c *Client) call(ctx context.Context, addr, node, name string, req, resp any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	if len(body) > MaxRequest {
		return &Error{Code: CodeTooLarge, Message: fmt.Sprintf("request of %d bytes, at most %d are allowed", len(body), MaxRequest)}
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultCallTimeout)
		defer cancel()
	}
	u := url.URL{Scheme: "http", Host: poolKey(addr, node), Path: "/rpc/" + name} // TLS is the Dialer's part
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	hr.Host = addr
	hr.Header.Set("Content-Type", "application/json")
	if at, ok := ctx.Deadline(); ok {
		hr.Header.Set(timeoutHeader, strconv.FormatInt(max(1, time.Until(at).Milliseconds()), 10))
	}
	res, err := c.http.RoundTrip(hr)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return readReply(res, MaxAnswer, resp)
}

// Close closes idle connections; running calls end by their own deadlines.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// poolKey names a pool of http.Transport, which knows host and port only.
func poolKey(addr, node string) string {
	return hex.EncodeToString([]byte(node+" "+addr)) + ":1"
}

func parsePoolKey(key string) (addr, node string, err error) {
	b, err := hex.DecodeString(strings.TrimSuffix(key, ":1"))
	node, addr, ok := strings.Cut(string(b), " ")
	if err != nil || !ok {
		return "", "", errors.New("connection pool has lost its key")
	}
	return addr, node, nil
}
