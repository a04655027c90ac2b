package obs

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"matriarch/fsm"
)

// Patroni is a node as Patroni's metrics describe it. Zero times and positions are exported as 0, which is also what Patroni says of
// a value that does not apply.
type Patroni struct {
	Version           int // of Patroni's interface that is followed: 40104 for 4.1.4
	PostgresRunning   bool
	PostmasterStart   time.Time
	Primary           bool
	StandbyLeader     bool
	Replica           bool
	SyncStandby       bool
	QuorumStandby     bool
	Location          fsm.LSN // of a primary
	ReceivedLocation  fsm.LSN // of a standby
	ReplayedLocation  fsm.LSN // of a standby
	ReplayedTime      time.Time
	ReplayPaused      bool
	Streaming         bool
	InArchiveRecovery bool
	ServerVersion     int  // as server_version_num, for instance 150020
	ClusterUnlocked   bool // nobody holds the group's lease
	FailsafeActive    bool
	Timeline          fsm.Timeline
	ConsensusSeen     time.Time // last answer of the control plane
	PendingRestart    bool
	Paused            bool
	State             PostgresState
}

// PostgresState is the number Patroni gives to what the server is doing.
type PostgresState int

// The states, numbered as in Patroni.
const (
	StateInitDB PostgresState = iota
	StateInitDBFailed
	StateCustomBootstrap
	StateCustomBootstrapFailed
	StateCreatingReplica
	StateRunning
	StateStarting
	StateBootstrapStarting
	StateStartFailed
	StateRestarting
	StateRestartFailed
	StateStopping
	StateStopped
	StateStopFailed
	StateCrashed
)

// stateNames are Patroni's texts, as in the API's key state.
var stateNames = [...]string{
	"initializing new cluster", "initdb failed", "running custom bootstrap script", "custom bootstrap failed", "creating replica",
	"running", "starting", "starting after custom bootstrap", "start failed", "restarting", "restart failed", "stopping", "stopped",
	"stop failed", "crashed",
}

// String is the text that Patroni's API gives for the state.
func (s PostgresState) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return "unknown"
	}
	return stateNames[s]
}

type series struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*Patroni) float64
}

func gaugeOf(name, help string, value func(*Patroni) float64) series {
	return series{prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, value}
}

// counterOf is for positions in the log, which Patroni calls counters; a client library's counter could not be set.
func counterOf(name, help string, value func(*Patroni) float64) series {
	return series{prometheus.NewDesc(name, help, nil, nil), prometheus.CounterValue, value}
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMicro()) / 1e6
}

var patroniSeries = []series{
	gaugeOf("patroni_version", "Version of Patroni's interface that is followed.", func(p *Patroni) float64 { return float64(p.Version) }),
	gaugeOf("patroni_postgres_running", "1 if PostgreSQL is running, else 0.", func(p *Patroni) float64 { return number(p.PostgresRunning) }),
	gaugeOf("patroni_postmaster_start_time", "Unix time at which PostgreSQL started.", func(p *Patroni) float64 { return seconds(p.PostmasterStart) }),
	gaugeOf("patroni_primary", "1 if this node is the primary and holds the lease, else 0.", func(p *Patroni) float64 { return number(p.Primary) }),
	counterOf("patroni_xlog_location", "Current position of the log on the primary, 0 on a standby.", func(p *Patroni) float64 { return float64(p.Location) }),
	gaugeOf("patroni_standby_leader", "1 if this node leads a standby cluster, else 0.", func(p *Patroni) float64 { return number(p.StandbyLeader) }),
	gaugeOf("patroni_replica", "1 if this node is a standby, else 0.", func(p *Patroni) float64 { return number(p.Replica) }),
	gaugeOf("patroni_sync_standby", "1 if this node is a synchronous standby, else 0.", func(p *Patroni) float64 { return number(p.SyncStandby) }),
	gaugeOf("patroni_quorum_standby", "1 if this node is a quorum standby, else 0.", func(p *Patroni) float64 { return number(p.QuorumStandby) }),
	counterOf("patroni_xlog_received_location", "Position up to which a standby has received the log, 0 on the primary.", func(p *Patroni) float64 { return float64(p.ReceivedLocation) }),
	counterOf("patroni_xlog_replayed_location", "Position up to which a standby has replayed the log, 0 on the primary.", func(p *Patroni) float64 { return float64(p.ReplayedLocation) }),
	gaugeOf("patroni_xlog_replayed_timestamp", "Unix time of the last replayed commit, 0 if there is none.", func(p *Patroni) float64 { return seconds(p.ReplayedTime) }),
	gaugeOf("patroni_xlog_paused", "1 if replay is paused, else 0.", func(p *Patroni) float64 { return number(p.ReplayPaused) }),
	gaugeOf("patroni_postgres_streaming", "1 if PostgreSQL streams from another server, else 0.", func(p *Patroni) float64 { return number(p.Streaming) }),
	gaugeOf("patroni_postgres_in_archive_recovery", "1 if PostgreSQL replays from the archive, else 0.", func(p *Patroni) float64 { return number(p.InArchiveRecovery) }),
	gaugeOf("patroni_postgres_server_version", "Version of PostgreSQL, 0 if it does not run.", func(p *Patroni) float64 { return float64(p.ServerVersion) }),
	gaugeOf("patroni_cluster_unlocked", "1 if nobody holds the lease of this node's group, else 0.", func(p *Patroni) float64 { return number(p.ClusterUnlocked) }),
	gaugeOf("patroni_failsafe_mode_is_active", "1 if failsafe mode is active, else 0.", func(p *Patroni) float64 { return number(p.FailsafeActive) }),
	counterOf("patroni_postgres_timeline", "Timeline of this node's PostgreSQL, 0 if it is unknown.", func(p *Patroni) float64 { return float64(p.Timeline) }),
	gaugeOf("patroni_dcs_last_seen", "Unix time of the control plane's last answer to this node.", func(p *Patroni) float64 { return seconds(p.ConsensusSeen) }),
	gaugeOf("patroni_pending_restart", "1 if a changed setting waits for a restart, else 0.", func(p *Patroni) float64 { return number(p.PendingRestart) }),
	gaugeOf("patroni_is_paused", "1 if automatic actions are suspended, else 0.", func(p *Patroni) float64 { return number(p.Paused) }),
	gaugeOf("patroni_postgres_state", "What PostgreSQL is doing, as a number: 5 is running, 6 starting, 12 stopped, 14 crashed.", func(p *Patroni) float64 { return float64(p.State) }),
}
