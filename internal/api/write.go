package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"matriarch/fsm"
	"matriarch/internal/admin"
)

// Writer carries out what an operator may ask for over HTTP.
type Writer interface {
	Submit(ctx context.Context, c fsm.Command) (fsm.Result, error)
	RestartStandby(ctx context.Context) error
	Reinit(ctx context.Context, from fsm.NodeID) error
}

// change is the body of Patroni's requests, with the group as an addition: Patroni has one cluster a group.
type change struct {
	Leader      string       `json:"leader"`
	Candidate   string       `json:"candidate"`
	ScheduledAt string       `json:"scheduled_at"`
	Group       *fsm.GroupID `json:"group"`
}

// errBad is a request that cannot be understood; anything else is a refusal by the cluster.
type errBad struct{ error }

func bad(format string, args ...any) error { return errBad{fmt.Errorf(format, args...)} }

// writes are the requests that change something.
func (s *Server) writes() map[string]func(ctx context.Context, r *http.Request) (string, error) {
	return map[string]func(ctx context.Context, r *http.Request) (string, error){
		"POST /switchover":   s.switchover,
		"DELETE /switchover": s.cancel,
		"POST /failover":     s.failover,
		"PATCH /config":      s.patch,
		"POST /restart": func(ctx context.Context, r *http.Request) (string, error) {
			if err := decodeBody(r, &struct{}{}); err != nil { // a time or a condition that is not kept would be worse than a refusal
				return "", err
			}
			return "restart asked for", s.cfg.Writer.RestartStandby(ctx)
		},
		"POST /reinitialize": func(ctx context.Context, r *http.Request) (string, error) {
			if err := decodeBody(r, &struct {
				Force bool `json:"force"` // Patroni's clients send it; here nothing differs
			}{}); err != nil {
				return "", err
			}
			return "reinitialize asked for", s.cfg.Writer.Reinit(ctx, "")
		},
	}
}

// writing asks for the credential, then carries out.
func (s *Server) writing(do func(context.Context, *http.Request) (string, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.mayWrite() {
			s.notOffered(w, r)
			return
		}
		if !s.gate.authorised(w, r) {
			return
		}
		if err := foreignPages.Check(r); err != nil {
			writeError(w, http.StatusForbidden, "cross_origin", "a web page of another site sent this", "")
			return
		}
		if kind, ok := jsonBody(r); !ok {
			writeError(w, http.StatusUnsupportedMediaType, "content_type", fmt.Sprintf("the body is %s, and only application/json is understood", kind), "")
			return
		}
		text, err := do(r.Context(), r)
		_, wrong := errors.AsType[errBad](err)
		_, large := errors.AsType[*http.MaxBytesError](err)
		switch {
		case large:
			writeError(w, http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("a request may have %d bytes", maxBody), "")
		case wrong:
			writeError(w, http.StatusBadRequest, "bad_request", err.Error(), "")
		case err != nil:
			writeError(w, http.StatusPreconditionFailed, "refused", err.Error(), "")
		default:
			writeJSON(w, http.StatusAccepted, map[string]string{"message": text})
		}
	}
}

// foreignPages protects a browser that knows a credential.
var foreignPages = http.NewCrossOriginProtection()

// jsonBody reports whether a body is said to be JSON. curl -d calls everything a form, as in Patroni's own examples, and saying nothing is
// as common.
func jsonBody(r *http.Request) (string, bool) {
	said := r.Header.Get("Content-Type")
	kind, _, err := mime.ParseMediaType(said)
	if said == "" || kind == "application/json" || kind == "application/x-www-form-urlencoded" {
		return kind, err == nil || said == ""
	}
	return strconv.Quote(said), false
}

func (s *Server) mayWrite() bool { return s.cfg.Access.Writes && s.cfg.Writer != nil }

// notOffered names the methods that the path has.
func (s *Server) notOffered(w http.ResponseWriter, r *http.Request) {
	allow := []string{"GET", "HEAD", "OPTIONS"}
	code, why, hint := "read_only", ": this interface only reads", "use the command line: matriarch --help; or set api.writes"
	if s.mayWrite() {
		code, why, hint = "method_not_allowed", " for "+r.URL.Path, "see docs/operations.md for what is"
		for pattern := range s.writes() {
			if method, path, _ := strings.Cut(pattern, " "); path == r.URL.Path {
				allow = append(allow, method)
			}
		}
		slices.Sort(allow)
	}
	w.Header().Set("Allow", strings.Join(allow, ", "))
	writeError(w, http.StatusMethodNotAllowed, code, r.Method+" is not offered"+why, hint)
}

// decodeBody is strict: a mistyped key must not mean something else than was meant.
func decodeBody(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	d.UseNumber() // 1048576 shall not become 1.048576e+06
	err := d.Decode(into)
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return err
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return bad("read the request: %w", err)
	}
	if d.More() {
		return bad("read the request: there is more than one document")
	}
	return nil
}

// target finds the group that a request is about: the one named, its leader's, its candidate's, or this node's own.
func (s *Server) target(ctx context.Context, c change) (*fsm.State, fsm.Group, fsm.NodeID, error) {
	st := s.cfg.Source.Status(ctx)
	if st.State == nil {
		return nil, fsm.Group{}, "", errors.New("this node has no copy of the cluster's state yet: ask another")
	}
	self, _ := st.Me()
	group := self.Group
	var to fsm.NodeID
	for _, name := range []string{c.Candidate, c.Leader} { // the leader's word counts last
		if name == "" {
			continue
		}
		n, ok := st.State.NodeByName(name)
		if !ok {
			return nil, fsm.Group{}, "", bad("there is no node %q", name)
		}
		group = n.Group
		if name == c.Candidate {
			to = n.ID
		}
	}
	if c.Group != nil {
		group = *c.Group
	}
	g, ok := st.State.Groups[group]
	if !ok {
		return nil, fsm.Group{}, "", bad("there is no group %d", group)
	}
	if c.Leader != "" && st.State.Name(g.Lease.Holder) != c.Leader {
		return nil, g, "", fmt.Errorf("%s is not the primary of group %d", c.Leader, group)
	}
	return st.State, g, to, nil
}

func (s *Server) switchover(ctx context.Context, r *http.Request) (string, error) {
	var c change
	if err := decodeBody(r, &c); err != nil {
		return "", err
	}
	if c.Leader == "" && c.Candidate == "" && c.Group == nil {
		return "", bad("leader is missing: name the primary that gives way, or the group")
	}
	_, g, to, err := s.target(ctx, c)
	if err != nil {
		return "", err
	}
	op := newOperation(fsm.Switchover, to, r)
	if c.ScheduledAt != "" {
		if op.Due, err = time.Parse(time.RFC3339, c.ScheduledAt); err != nil {
			return "", bad("scheduled_at %q is no time: use 2026-03-01T03:00:00Z", c.ScheduledAt)
		}
		if op.Due = op.Due.UTC(); !op.Due.After(time.Now()) {
			return "", bad("scheduled_at %s is over", c.ScheduledAt)
		}
	}
	return fmt.Sprintf("switchover of group %d asked for", g.ID), s.submit(ctx, fsm.OperationPut{Group: g.ID, Operation: op})
}

func (s *Server) failover(ctx context.Context, r *http.Request) (string, error) {
	var c change
	if err := decodeBody(r, &c); err != nil {
		return "", err
	}
	if c.Candidate == "" {
		return "", bad("candidate is missing: name the node that becomes primary")
	}
	_, g, to, err := s.target(ctx, c)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("failover of group %d asked for", g.ID), s.submit(ctx, fsm.OperationPut{Group: g.ID, Operation: newOperation(fsm.Failover, to, r)})
}

func (s *Server) cancel(ctx context.Context, _ *http.Request) (string, error) {
	_, g, _, err := s.target(ctx, change{})
	if err != nil {
		return "", err
	}
	for _, op := range []*fsm.Operation{g.Op, g.Planned} {
		if op != nil {
			return "given up", s.submit(ctx, fsm.OperationDrop{Group: g.ID, ID: op.ID, Reason: "cancelled over HTTP", Cancel: true})
		}
	}
	return "", fmt.Errorf("nothing is planned for group %d", g.ID)
}

func newOperation(kind string, to fsm.NodeID, r *http.Request) fsm.Operation {
	return fsm.Operation{ID: uuid.NewString(), Kind: kind, To: to, By: "http client " + clientOf(r).String(), At: time.Now().UTC().Truncate(time.Millisecond)}
}

// patch changes settings of the cluster, under the names that GET /config shows below matriarch.
func (s *Server) patch(ctx context.Context, r *http.Request) (string, error) {
	var keys map[string]any
	if err := decodeBody(r, &keys); err != nil {
		return "", err
	}
	st := s.cfg.Source.Status(ctx)
	if len(keys) == 0 || st.State == nil {
		return "", bad("no setting is named")
	}
	set := st.State.Cluster.Settings
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		switch keys[k].(type) {
		case string, json.Number, bool:
		default:
			return "", bad("%s: a text, a number, true or false is needed", k)
		}
		if err := admin.SetSetting(&set, fmt.Sprintf("%s=%v", k, keys[k])); err != nil {
			return "", bad("%w", err)
		}
	}
	return "settings changed", s.submit(ctx, fsm.SettingsPut{Settings: set})
}

func (s *Server) submit(ctx context.Context, c fsm.Command) error {
	res, err := s.cfg.Writer.Submit(ctx, c)
	if err == nil && !res.OK {
		err = errors.New(res.Reason)
	}
	return err
}
