package pgconf

// Security says how the nodes' PostgreSQL prove themselves to each other. The empty string is Passwords.
type Security string

// The steps of a formation that moves from passwords to certificates, or back. Neighbours understand each other, whoever is first.
const (
	Passwords Security = "off"  // links log in with a password, and use TLS where it is offered
	Both      Security = "both" // links show a certificate and demand one; servers accept the password as well
	Required  Security = "on"   // servers accept certificates only
)

// Certificates reports whether links show and demand certificates.
func (s Security) Certificates() bool { return s == Both || s == Required }

// PasswordLinks reports whether a link may be asked for a password.
func (s Security) PasswordLinks() bool { return s != Required }

// KeyPair names a certificate and its private key.
type KeyPair struct{ Cert, Key string }

// TLS names the files of PostgreSQL's certificates.
type TLS struct {
	Server      KeyPair
	Superuser   KeyPair // names the superuser: the manager's own sessions, pg_rewind and Citus
	Replication KeyPair // names the replication user: base backups; walreceivers have a copy per epoch
	CAFile      string  // who is trusted, as server and as client
	CRLFile     string  // of nodes that were removed; empty: none
}

// Link is how a client proves itself and checks the server. The host has to be a name or address in the server's certificate.
func (t TLS) Link(as KeyPair) Conninfo {
	return Conninfo{"sslmode": "verify-full", "sslrootcert": t.CAFile, "sslcert": as.Cert, "sslkey": as.Key}
}
