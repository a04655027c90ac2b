package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Access says who may do what. The zero value lets everybody read, as often as they like, and nobody write.
type Access struct {
	ReadsClosed bool           // all but health checks needs a credential
	Writes      bool           // whoever has a credential may change things
	Allow       []netip.Prefix // clients' addresses; empty: all
	Rate        int            // requests a second from one address; 0: no limit
	// Credentials reads those that count now, so that a changed file needs no restart. Called for each request that needs one.
	Credentials func() (Credentials, error)
	// Revoked reports whether a client's certificate, though valid, counts no more. nil: all valid ones count.
	Revoked func(*x509.Certificate) bool
}

// Credentials are what a client may show instead of a certificate. Empty ones let nobody in.
type Credentials struct {
	Token    string // bearer token
	User     string // of basic authentication, as Patroni's clients use it
	Password string //nolint:gosec // a field, not a secret
}

// certified reports whether a request came with a client certificate that counts. It was verified in the handshake.
func (a Access) certified(r *http.Request) bool {
	return r.TLS != nil && len(r.TLS.VerifiedChains) > 0 && (a.Revoked == nil || !a.Revoked(r.TLS.VerifiedChains[0][0]))
}

// admits reports whether a request carries one of the credentials.
func (c Credentials) admits(r *http.Request) bool {
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return c.Token != "" && same(token, c.Token)
	}
	user, password, ok := r.BasicAuth()
	return ok && c.User != "" && c.Password != "" && same(user+"\x00"+password, c.User+"\x00"+c.Password)
}

// same compares in a time that tells nothing, not even the length.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// guesses is how many wrong credentials an address may show in a minute.
const guesses = 20

// gate judges every request before it is looked at.
type gate struct {
	access  Access
	rate    *limiter
	guesses *limiter
	now     func() time.Time
}

func newGate(a Access) *gate {
	return &gate{
		access: a, now: time.Now, rate: newLimiter(float64(a.Rate), float64(a.Rate)*2), guesses: newLimiter(float64(guesses)/60, guesses),
	}
}

// enter wraps everything: addresses and rates.
func (g *gate) enter(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := clientOf(r)
		switch {
		case !g.allowed(from):
			writeError(w, http.StatusForbidden, "forbidden", "this address may not ask here", "api.allow in the node's configuration lists those that may")
		case g.access.Rate > 0 && !g.rate.take(from, g.now()):
			w.Header().Set("Retry-After", "1")
			writeError(w, http.StatusTooManyRequests, "too_many", "too many requests from this address", "ask less often, or raise api.rate_limit")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (g *gate) allowed(from netip.Addr) bool {
	if len(g.access.Allow) == 0 {
		return true
	}
	for _, p := range g.access.Allow {
		if p.Contains(from) {
			return true
		}
	}
	return false
}

// authorised answers a request without the right credential itself.
func (g *gate) authorised(w http.ResponseWriter, r *http.Request) bool {
	from := clientOf(r)
	if !g.guesses.has(from, g.now()) {
		w.Header().Set("Retry-After", "60")
		writeError(w, http.StatusTooManyRequests, "too_many", "too many wrong credentials from this address", "wait a minute")
		return false
	}
	var c Credentials
	if g.access.Credentials != nil {
		var err error
		if c, err = g.access.Credentials(); err != nil {
			writeError(w, http.StatusServiceUnavailable, "no_credentials", "the files with this node's credentials cannot be read", "see the node's log")
			return false
		}
	}
	if g.access.certified(r) || c.admits(r) {
		return true
	}
	if r.Header.Get("Authorization") != "" {
		g.guesses.take(from, g.now())
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="matriarch"`)
	writeError(w, http.StatusUnauthorized, "unauthorized", "this needs a client certificate, a bearer token or a user name with password", "see docs/security.md")
	return false
}

func clientOf(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(host) // none is in no list
	return a.Unmap().WithZone("")
}

// limiter is a bucket for each address: it fills at a rate and holds so many.
type limiter struct {
	perSecond, most float64

	mu      sync.Mutex
	buckets map[netip.Addr]bucket
}

type bucket struct {
	left float64
	at   time.Time
}

// mostAddresses bounds the memory that strangers can take; one address more forgets them all.
const mostAddresses = 4096

func newLimiter(perSecond, most float64) *limiter {
	return &limiter{perSecond: perSecond, most: most, buckets: map[netip.Addr]bucket{}}
}

// take uses one up, if there is one.
func (l *limiter) take(a netip.Addr, now time.Time) bool { return l.use(a, now, 1) }

// has reports whether there is one.
func (l *limiter) has(a netip.Addr, now time.Time) bool { return l.use(a, now, 0) }

func (l *limiter) use(a netip.Addr, now time.Time, n float64) bool {
	if a.Is6() { // who has one address of a network has all of it
		p, _ := a.Prefix(64)
		a = p.Addr()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b, known := l.buckets[a]
	if !known {
		if len(l.buckets) >= mostAddresses {
			l.buckets = map[netip.Addr]bucket{}
		}
		b = bucket{left: l.most, at: now}
	}
	b.left = math.Min(l.most, b.left+now.Sub(b.at).Seconds()*l.perSecond)
	b.at = now
	ok := b.left >= 1
	if ok {
		b.left -= n
	}
	l.buckets[a] = b
	return ok
}

// ParseAllow reads addresses and networks.
func ParseAllow(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, &badNetwork{s}
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

type badNetwork struct{ text string }

func (e *badNetwork) Error() string {
	return strconv.Quote(e.text) + " is no address or network: write 10.0.0.7 or 10.0.0.0/8"
}
