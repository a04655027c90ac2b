package transport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"
)

// Codes of Error that this package itself gives. Handlers may use others.
const (
	CodeInternal   = "internal"
	CodeBadRequest = "bad_request"
	CodeNotFound   = "not_found"
	CodeNotLeader  = "not_leader"
	CodeTimeout    = "timeout"
	CodeTooLarge   = "too_large"
	CodeRefused    = "refused"
)

// Error crosses the wire. A handler that returns one (wrapped or not) has it arrive as it is; any other error becomes CodeInternal.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`   // what the operator can do
	Leader  string `json:"leader,omitempty"` // with CodeNotLeader: where to ask, host:port of the peer port
}

// Error is message and hint in one line.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + ": " + e.Hint
}

// wireError is what the other side gets to know of err.
func wireError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{Code: CodeTimeout, Message: err.Error()}
	}
	return &Error{Code: CodeInternal, Message: err.Error()}
}

func (e *Error) status() int {
	switch e.Code {
	case CodeBadRequest:
		return http.StatusBadRequest
	case CodeNotFound:
		return http.StatusNotFound
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case CodeInternal:
		return http.StatusInternalServerError
	case CodeTimeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusConflict
}

const (
	headerTimeout = 5 * time.Second
	bodyTimeout   = 10 * time.Second // to read a body, or to write an answer
	serverIdle    = 2 * time.Minute
	clientIdle    = time.Minute // below serverIdle, so that the client closes first
)

func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       serverIdle,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
}

type connKey struct{}

// serve runs s on l until either is closed, which is no error.
func serve(s *http.Server, l net.Listener) error {
	err := s.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// endpoint answers a JSON request by a JSON answer.
type endpoint struct {
	name  string
	log   *slog.Logger
	limit int64 // bytes of a request
	call  func(ctx context.Context, c net.Conn, body []byte) (any, error)
	hide  bool // internal errors stay in the log: the client has not authenticated
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	// net/http lifts this deadline once it has the whole body, so a handler may take longer. It fails only on a dead connection.
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, e.limit))
	var out any
	switch {
	case err == nil:
		out, err = e.run(r.Context(), body)
	case asTooLarge(err):
		err = &Error{Code: CodeTooLarge, Message: fmt.Sprintf("request of more than %d bytes", e.limit)}
	default:
		err = &Error{Code: CodeBadRequest, Message: "read request: " + err.Error()}
	}
	status, reply := http.StatusOK, out
	if err != nil {
		we := wireError(err)
		if we.Code == CodeInternal {
			e.log.Warn("request failed", "request", e.name, "error", err)
			if e.hide {
				we = &Error{Code: CodeInternal, Message: "internal error", Hint: "see the log of the node that was asked"}
			}
		}
		status, reply = we.status(), we
	}
	buf, err := json.Marshal(reply)
	if err != nil {
		e.log.Error("answer cannot be encoded", "request", e.name, "error", err)
		status, buf = http.StatusInternalServerError, []byte(`{"code":"internal","message":"answer cannot be encoded"}`)
	}
	_ = rc.SetWriteDeadline(time.Now().Add(bodyTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(buf) // the client is gone: it sees that itself
}

// run calls the handler and turns a panic into an error.
func (e *endpoint) run(ctx context.Context, body []byte) (out any, err error) {
	defer func() {
		if p := recover(); p != nil {
			e.log.Error("request handler panicked", "request", e.name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			out, err = nil, &Error{Code: CodeInternal, Message: "request " + e.name + " failed unexpectedly", Hint: "see the log of the node that was asked"}
		}
	}()
	c, _ := ctx.Value(connKey{}).(net.Conn)
	return e.call(ctx, c, body)
}

func asTooLarge(err error) bool {
	_, ok := errors.AsType[*http.MaxBytesError](err)
	return ok
}

func decodeRequest[T any](body []byte) (req T, err error) {
	if err := json.Unmarshal(body, &req); err != nil {
		return req, &Error{Code: CodeBadRequest, Message: "decode request: " + err.Error(), Hint: "do both nodes run compatible versions?"}
	}
	return req, nil
}

// readReply decodes an answer into out (nil: dropped), or returns the *Error that was sent.
func readReply(res *http.Response, limit int64, out any) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	switch {
	case err != nil:
		return fmt.Errorf("read answer: %w", err)
	case int64(len(body)) > limit:
		return fmt.Errorf("read answer: more than %d bytes", limit)
	case res.StatusCode != http.StatusOK:
		e := &Error{}
		if json.Unmarshal(body, e) != nil || e.Code == "" {
			return fmt.Errorf("read answer: unexpected status %s", res.Status)
		}
		return e
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}
