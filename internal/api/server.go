package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/obs"
)

// Source is the node.
type Source interface {
	Status(ctx context.Context) admin.Status
}

// Config is what a server is made of. Metrics may be nil: then /metrics is not found.
type Config struct {
	Source  Source
	Metrics *obs.Metrics
	Log     *slog.Logger
	Access  Access
	Writer  Writer      // nil: nothing can be changed
	TLS     *tls.Config // nil: plain HTTP
}

const (
	readTimeout = 10 * time.Second
	idleTimeout = time.Minute
	maxHeader   = 16 << 10
	maxBody     = 16 << 10
)

// Server answers HTTP.
type Server struct {
	cfg  Config
	gate *gate
	http *http.Server
}

// New makes a server; Serve starts it.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, gate: newGate(cfg.Access)}
	s.http = &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: readTimeout / 2, ReadTimeout: readTimeout, WriteTimeout: readTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers on l until Close; then it returns nil.
func (s *Server) Serve(l net.Listener) error {
	if s.cfg.TLS != nil {
		l = tls.NewListener(l, s.cfg.TLS)
	}
	if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
	}
	return nil
}

// Close ends the server and its connections.
func (s *Server) Close() error { return s.http.Close() }

// Handler answers all paths.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, check := range checks() {
		if path == "/" {
			path = "/{$}"
		}
		mux.HandleFunc(path, s.reading(s.check(check)))
	}
	mux.HandleFunc("/patroni", s.reading(s.private(func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, nodeStatus(s.cfg.Source.Status(r.Context())))
	})))
	mux.HandleFunc("/failsafe", s.reading(s.private(func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, failsafeView(s.cfg.Source.Status(r.Context())))
	})))
	mux.HandleFunc("/cluster", s.reading(s.private(s.withState(clusterView))))
	mux.HandleFunc("/history", s.reading(s.private(s.withState(historyView))))
	mux.HandleFunc("/config", s.reading(s.private(s.withState(configView))))
	if s.cfg.Metrics != nil {
		mux.HandleFunc("/metrics", s.reading(s.private(s.metrics)))
	}
	for pattern, do := range s.writes() {
		mux.HandleFunc(pattern, s.writing(do))
	}
	mux.HandleFunc("/", s.reading(func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, "not_found", fmt.Sprintf("there is no %s here", r.URL.Path), "see docs for the paths; /cluster shows the formation")
	}))
	return s.gate.enter(http.MaxBytesHandler(mux, maxBody))
}

// reading refuses everything that would change something, and answers OPTIONS like HEAD.
func (s *Server) reading(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodGet, http.MethodHead:
			next(w, r)
		case http.MethodOptions:
			next(statusOnly{w}, r)
		default:
			s.notOffered(w, r)
		}
	}
}

// private asks for a credential where reads are closed. Health checks are never private: they tell no more than an open port does.
func (s *Server) private(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.cfg.Access.ReadsClosed || s.gate.authorised(w, r) {
			next(w, r)
		}
	}
}

// statusOnly drops the body, as net/http does for HEAD.
type statusOnly struct{ http.ResponseWriter }

func (w statusOnly) Write(b []byte) (int, error) { return len(b), nil }

// check answers 200 or 503 with the node's status.
func (s *Server) check(ok checkFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		st := s.cfg.Source.Status(r.Context())
		pass, err := ok(st, r.URL.Query())
		if err != nil {
			writeError(w, http.StatusBadRequest, "bad_request", err.Error(), "")
			return
		}
		code := http.StatusServiceUnavailable
		if pass {
			code = http.StatusOK
		}
		if s.cfg.Access.ReadsClosed {
			w.WriteHeader(code) // the status is all that a load balancer needs
			return
		}
		writeJSON(w, code, nodeStatus(st))
	}
}

// withState needs a copy of the replicated state, which a node that has just started may lack.
func (s *Server) withState(view func(admin.Status) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		st := s.cfg.Source.Status(r.Context())
		if st.State == nil || st.State.Cluster.ID == "" {
			writeError(w, http.StatusServiceUnavailable, "no_state", "this node has no copy of the cluster's state yet", "ask another node, or wait until it has heard of a Raft leader")
			return
		}
		writeJSON(w, http.StatusOK, view(st))
	}
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	st := s.cfg.Source.Status(r.Context())
	m := s.cfg.Metrics
	m.Patroni(patroniMetrics(st))
	m.Slots(slotMetrics(st))
	m.Raft(st.Raft.Leads, st.Raft.Term, st.Raft.Applied)
	var epoch fsm.Epoch
	var left time.Duration
	if self := st.Self; self != nil && self.LeaseLeft > 0 {
		epoch, left = self.Epoch, self.LeaseLeft
	}
	m.Lease(epoch, left)
	m.Failsafe(failsafeActive(st))
	m.Formation(formationMetrics(st))
	aside, weak := 0, false
	if st.Self != nil {
		aside, weak = len(st.Self.SetAside), st.Self.Report.Fence == "weak"
	}
	m.Node(aside, weak, st.Raft.LastContact)
	m.Handler().ServeHTTP(w, r)
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		writeError(w, http.StatusInternalServerError, "internal", "encode the answer: "+err.Error(), "")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n'))
}

// apiError is the body of every answer that is an error.
type apiError struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Hint    string `json:"hint,omitempty"`
	} `json:"error"`
}

func writeError(w http.ResponseWriter, status int, code, message, hint string) {
	var e apiError
	e.Error.Code, e.Error.Message, e.Error.Hint = code, message, hint
	writeJSON(w, status, e)
}
