package doctor

import (
	"time"

	"matriarch/internal/config"
)

// Facts is what was seen of a host. An Err is the look that failed, in words.
type Facts struct {
	Now         time.Time
	Config      config.Config // complete; the defaults when there is no file
	ConfigFile  string
	ConfigErr   string // empty: read and valid
	Configured  bool   // the file holds a configuration
	Member      bool   // the state directory belongs to a cluster
	AgentPID    int    // 0: no agent of this host answered
	SentinelUp  bool
	UID         int
	User        string // that PostgreSQL runs as
	UserErr     string
	PostgreSQL  PostgreSQL
	Citus       Citus
	Clock       Clock
	Disks       []Disk
	Ports       []Port
	Reach       []Reach
	Kernel      map[string]string // by path under /proc/sys or /sys; absent: could not be read
	MemoryBytes uint64
	Limits      map[string]Limit // by the name in /proc/PID/limits
	Names       []Name
	Watchdog    Watchdog
	Rights      []Right
	Certs       []Cert
	Strangers   []string          // nodes that show certificates of another CA
	Units       map[string]string // what systemd says of a unit: enabled, disabled, masked, not-found; empty map: no systemd
}

// PostgreSQL is the server's programs and data directory.
type PostgreSQL struct {
	Dir      string
	Err      string
	Versions map[string]string // of each program: "15.18"
	Data     string            // major version of the data directory; empty: none yet
	Preload  string            // shared_preload_libraries in effect for the data directory
}

// Citus is the extension's files for that server.
type Citus struct {
	Library string // path of citus.so; empty: not found
	Control string // path of citus.control
	Version string // default_version
	StandIn bool   // the one for tests
}

// Clock is how the host keeps time.
type Clock struct {
	Source    string
	Available []string
	Synced    bool
	SyncErr   string
	MaxError  time.Duration // by the kernel's estimate
	Jump      time.Duration // of the wall clock against the steady one, while the doctor looked
	Drift     float64       // of the steady clock against the raw one, in parts per million
	Peers     []PeerClock
}

// PeerClock is another node's wall clock.
type PeerClock struct {
	Name   string
	Offset time.Duration // theirs minus ours
	Within time.Duration // uncertainty: half of the time that the answer took
}

// Disk is one directory and what it is on.
type Disk struct {
	Key                 string // setting that names it
	Path                string // the nearest directory that exists
	Device              uint64
	FS                  string
	Free, Total, Inodes uint64 // bytes, bytes, free inodes
	ReadOnly            bool
	Syncs               int
	Median, Worst       time.Duration // of one fdatasync after 8 kB
	Err                 string
}

// Port is an address to listen on.
type Port struct {
	Key, Addr string
	InUse     bool
	Err       string // another reason why it cannot be listened on
}

// Reach is an address of another node that this host needs.
type Reach struct {
	Node, What, Addr string
	Took             time.Duration
	Err              string
}

// Limit is one of a process' resource limits; -1 is unlimited.
type Limit struct {
	Soft, Hard int64
}

// Name is a look-up of a host's name.
type Name struct {
	Name  string
	Own   bool
	Took  time.Duration
	Addrs []string
	Err   string
}

// Watchdog is the kernel's.
type Watchdog struct {
	Exists   bool
	Identity string
	NoWayOut bool
}

// Right is a file that only certain users may read.
type Right struct {
	Path  string
	Mode  uint32 // permission bits
	Limit uint32 // bits that may be set
	UID   int
	Want  int // owner; -1: whoever
	Err   string
}

// CertUse says whose a certificate is, and so who renews it.
type CertUse string

// The uses.
const (
	CertNode     CertUse = "node"       // on the peer port
	CertCA       CertUse = "ca"         // the cluster's CA
	CertPostgres CertUse = "postgresql" // of PostgreSQL, issued by the agent
	CertBrought  CertUse = "brought"    // the operator's own
)

// Cert is a certificate of this node.
type Cert struct {
	File     string
	NotAfter time.Time
	Life     time.Duration // as a whole
	Use      CertUse
	Err      string
}
