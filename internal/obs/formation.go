package obs

import (
	"math"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"matriarch/fsm"
)

// Formation is the whole cluster as the Raft leader sees it. Only the leader has one: elsewhere the series would be of another moment.
type Formation struct {
	Healthy       bool
	Voters        int
	SlowestTick   time.Duration // of the last minute
	MetadataRight bool          // of Citus
	Groups        []GroupState
	Members       []MemberState
}

// GroupState is one group. Early says whether it could fail over early and without loss.
type GroupState struct {
	ID                                       fsm.GroupID
	Primary, Open, Degraded, Waiting, Paused bool
	Early                                    bool
}

// MemberState is one node as the leader sees it. Unknown lags are negative.
type MemberState struct {
	Name   string
	Group  fsm.GroupID
	Silent time.Duration // since its last keepalive
	Never  bool          // this leader has not heard of it yet
	Lag    int64         // bytes it has not received
}

// Formation replaces what the series of groups and members say; nil, on a node that does not lead, ends them.
func (m *Metrics) Formation(f *Formation) { m.formation.current.Store(f) }

// Node sets what a node says of itself besides Patroni's series: how many data sets it keeps aside, whether its fence is weak.
func (m *Metrics) Node(setAside int, weakFence bool, leaderSeen time.Duration) {
	m.setAside.Set(float64(setAside))
	m.weakFence.Set(number(weakFence))
	m.leaderContact.Set(leaderSeen.Seconds())
}

// Certificate has one of the node's certificates shown, by the function that tells when it expires. It is called once for each.
func (m *Metrics) Certificate(name string, expires func() time.Time) {
	m.labelled.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "matriarch_certificate_expiry_timestamp_seconds", Help: "Unix time at which a certificate of this node expires; 0: there is none.",
		ConstLabels: prometheus.Labels{"certificate": name},
	}, func() float64 { return seconds(expires()) }))
}

// formationCollector turns the last Formation into series at each scrape.
type formationCollector struct {
	current atomic.Pointer[Formation]
}

func leaderDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("matriarch_"+name, help+" On the leader only.", labels, nil)
}

var (
	formationHealthy  = leaderDesc("formation_healthy", "1 if status says healthy, else 0.")
	formationVoters   = leaderDesc("raft_voters", "Voters of the control plane.")
	formationTick     = leaderDesc("raft_slowest_tick_seconds", "Slowest commit of a tick of leases in the last minute.")
	formationMetadata = leaderDesc("citus_metadata_right", "1 if pg_dist_node is as wanted on every node, else 0.")

	groupPrimary  = leaderDesc("group_primary", "1 if a node holds the lease of the group, else 0.", "group")
	groupOpen     = leaderDesc("group_open", "1 if the group's primary lets clients in, else 0.", "group")
	groupDegraded = leaderDesc("group_degraded", "1 if commits wait for fewer standbys than they should, else 0.", "group")
	groupWaiting  = leaderDesc("group_waiting", "1 if the group is strict and commits wait for a standby that is not there, else 0.", "group")
	groupPaused   = leaderDesc("group_paused", "1 if the group's primary is not changed automatically, else 0.", "group")
	groupEarly    = leaderDesc("group_early_failover", "1 if the group could fail over before the end of the lease and lose nothing, else 0.", "group")

	memberSilent = leaderDesc("member_silent_seconds", "Time since the node's last keepalive, infinite if this leader has had none.", "member", "group")
	memberLag    = leaderDesc("member_lag_bytes", "Bytes of the log that the standby has not received, by the last reports.", "member", "group")
)

// Describe sends the description of every series.
func (c *formationCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		formationHealthy, formationVoters, formationTick, formationMetadata, groupPrimary, groupOpen, groupDegraded, groupWaiting, groupPaused, groupEarly, memberSilent, memberLag,
	} {
		ch <- d
	}
}

// Collect sends the values; none on a node that does not lead.
func (c *formationCollector) Collect(ch chan<- prometheus.Metric) {
	f := c.current.Load()
	if f == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(formationHealthy, number(f.Healthy))
	gauge(formationVoters, float64(f.Voters))
	gauge(formationTick, f.SlowestTick.Seconds())
	gauge(formationMetadata, number(f.MetadataRight))
	for _, g := range f.Groups {
		id := strconv.Itoa(int(g.ID))
		gauge(groupPrimary, number(g.Primary), id)
		gauge(groupOpen, number(g.Open), id)
		gauge(groupDegraded, number(g.Degraded), id)
		gauge(groupWaiting, number(g.Waiting), id)
		gauge(groupPaused, number(g.Paused), id)
		gauge(groupEarly, number(g.Early), id)
	}
	for _, m := range f.Members {
		id := strconv.Itoa(int(m.Group))
		silent := m.Silent.Seconds()
		if m.Never {
			silent = math.Inf(1)
		}
		gauge(memberSilent, silent, m.Name, id)
		if m.Lag >= 0 {
			gauge(memberLag, float64(m.Lag), m.Name, id)
		}
	}
}
