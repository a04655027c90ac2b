package fence

import (
	"encoding/json"
	"fmt"
	"time"
)

// MaxLine is the longest message in bytes. A longer one ends the connection.
const MaxLine = 128 << 10

// Op names a request.
type Op string

// The requests. Ping and status need no hello, and may come over any connection; the others belong to the agent, which says hello first.
const (
	OpHello    Op = "hello"
	OpPing     Op = "ping"
	OpStart    Op = "start"
	OpDeadline Op = "deadline"
	OpPromote  Op = "promote"
	OpStop     Op = "stop"
	OpKill     Op = "kill"
	OpAdopt    Op = "adopt"
	OpStatus   Op = "status"
	OpShutdown Op = "shutdown"
	OpWatchdog Op = "watchdog"
	OpRenounce Op = "renounce" // this epoch is never promoted here any more
)

// Request is one line from the agent. Fields that an older sentinel does not know are ignored by it, an unknown Op is refused.
type Request struct {
	ID       uint64        `json:"id"`
	Op       Op            `json:"op"`
	Start    *StartRequest `json:"start,omitempty"`
	Deadline *Deadline     `json:"deadline,omitempty"`
	Epoch    *Epoch        `json:"epoch,omitempty"` // promote, renounce
	Stop     *StopRequest  `json:"stop,omitempty"`
	Adopt    *AdoptRequest `json:"adopt,omitempty"`

	Watchdog *WatchdogRequest `json:"watchdog,omitempty"`
}

// StartRequest starts a postmaster as standby.
type StartRequest struct {
	Argv    []string `json:"argv"` // Argv[0] is the absolute path of postgres; -D and Dir must follow
	Env     []string `json:"env"`  // the whole environment, nothing is inherited
	Dir     string   `json:"dir"`  // PGDATA, absolute
	UID     uint32   `json:"uid"`
	GID     uint32   `json:"gid"`
	Groups  []uint32 `json:"groups,omitempty"`
	LogFile string   `json:"log_file"` // standard output and error are appended here
}

// Mode is a way to stop PostgreSQL, in its own words.
type Mode string

// The modes.
const (
	Fast      Mode = "fast"      // SIGINT: end the sessions, write a checkpoint
	Immediate Mode = "immediate" // SIGQUIT: end at once, recover at the next start
)

// StopRequest stops PostgreSQL. What is left after TimeoutMS milliseconds is killed; 0 means no limit but the lease's.
type StopRequest struct {
	Mode      Mode  `json:"mode"`
	TimeoutMS int64 `json:"timeout_ms"`
}

// AdoptRequest puts a running postmaster, not started by the sentinel, under its watch. If it is a primary without a valid deadline,
// one must come within GraceMS milliseconds.
type AdoptRequest struct {
	PID     int    `json:"pid"`
	Dir     string `json:"dir"` // PGDATA, absolute
	GraceMS int64  `json:"grace_ms"`
}

// Role is what the server is, judged by the sentinel itself.
type Role string

// The roles.
const (
	RoleNone    Role = "none"    // no server
	RoleStandby Role = "standby" // standby.signal is there
	RolePrimary Role = "primary" // standby.signal is missing: writable, or about to be
)

// Status is what the sentinel knows.
type Status struct {
	Instance    string    `json:"instance"` // drawn at the sentinel's start
	SentinelPID int       `json:"sentinel_pid"`
	Postmaster  int       `json:"postmaster"` // pid, 0: none
	StartedAt   time.Time `json:"started_at,omitzero"`
	Role        Role      `json:"role"`
	Epoch       Epoch     `json:"epoch"` // of the ordered promotion or the running primary; zero: none
	Deadline    *Deadline `json:"deadline,omitempty"`
	Weak        bool      `json:"weak"` // adopted: no parent here, so the fence is weaker
	// Left counts processes of that PostgreSQL. It is exact when 0; otherwise it need not include grandchildren of the postmaster.
	Left     int             `json:"left"`
	LastExit *Exit           `json:"last_exit,omitempty"`
	Watchdog *WatchdogStatus `json:"watchdog,omitempty"`
}

// Exit tells how the last server ended. Code 0 does not mean a clean end: PostgreSQL says so after an immediate stop as well.
type Exit struct {
	Code   int       `json:"code"`   // exit code, -1: ended by a signal, or unknown
	Signal int       `json:"signal"` // 0: none, or unknown
	At     time.Time `json:"at"`
	Fenced bool      `json:"fenced"` // the sentinel ended it because its lease did
	Reason string    `json:"reason"`
}

// Response answers the request of the same id. Code is empty when it succeeded.
type Response struct {
	ID      uint64  `json:"id"`
	Version string  `json:"version,omitempty"` // hello: the sentinel's version
	Code    Code    `json:"code,omitempty"`
	Error   string  `json:"error,omitempty"`
	Status  *Status `json:"status,omitempty"` // all but ping, deadline and shutdown
}

// Kind names an event.
type Kind string

// The events.
const (
	Exited     Kind = "exited"     // the postmaster ended and no process is left; Status.LastExit tells how
	Fenced     Kind = "fenced"     // the sentinel began to end the server because of its lease
	RoleChange Kind = "role"       // Status.Role is the new role
	Superseded Kind = "superseded" // another agent said hello; this connection ends
	Closed     Kind = "closed"     // made by the Client: the connection ended; the last event
)

// Event is pushed by the sentinel. Events are hints: after a new Dial the Status tells what was missed.
type Event struct {
	Kind   Kind    `json:"event"`
	Reason string  `json:"reason,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// Code classifies a refusal. It is an error, so that errors.Is(err, ErrRunning) works on what the Client returns.
type Code string

// The codes.
const (
	ErrInvalid     Code = "invalid"      // malformed request
	ErrUnsupported Code = "unsupported"  // operation unknown to this sentinel
	ErrHello       Code = "hello_first"  // not the agent's connection (any more)
	ErrRunning     Code = "running"      // a process of that PostgreSQL is left
	ErrNotRunning  Code = "not_running"  // no server, or it is being stopped
	ErrNotStandby  Code = "not_standby"  // standby.signal is missing
	ErrInstance    Code = "instance"     // deadline for another sentinel instance
	ErrStale       Code = "stale"        // deadline older than the known one
	ErrDeadline    Code = "no_deadline"  // no valid deadline of that epoch
	ErrEpoch       Code = "epoch"        // the server, or an earlier promotion, has that or another epoch
	ErrIdentity    Code = "not_that_one" // the process to adopt is not that data directory's postmaster
	ErrWatchdog    Code = "watchdog"     // it is required and not to be had; the epoch is used up
	ErrFailed      Code = "failed"       // the system refused: see the message
)

// Error makes a Code an error.
func (c Code) Error() string { return "sentinel: " + string(c) }

// Error is a refusal by the sentinel, with the operator's remedy in Message. It unwraps to its Code.
type Error struct {
	Code    Code
	Message string
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the code.
func (e *Error) Unwrap() error { return e.Code }

func refuse(c Code, format string, args ...any) error {
	return &Error{Code: c, Message: fmt.Sprintf(format, args...)}
}

// encode makes one line of a message.
func encode(m any) ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	if len(b) >= MaxLine {
		return nil, fmt.Errorf("encode %T: %d bytes, the limit is %d", m, len(b), MaxLine)
	}
	return append(b, '\n'), nil
}
