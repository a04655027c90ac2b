package obs

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"matriarch/fsm"
)

// Metrics is a node's registry. Every series carries the labels scope (the cluster's name) and name (the node's), as Patroni's do.
type Metrics struct {
	registry  *prometheus.Registry
	labelled  prometheus.Registerer // adds scope and name
	patroni   patroniCollector
	proxy     proxyCollector
	slots     slotCollector
	formation formationCollector

	raftLeader  prometheus.Gauge
	raftTerm    prometheus.Gauge
	raftApplied prometheus.Gauge
	elections   prometheus.Counter

	setAside      prometheus.Gauge
	weakFence     prometheus.Gauge
	leaderContact prometheus.Gauge

	leaseRemaining   prometheus.Gauge
	leaseIncarnation prometheus.Gauge
	leaseEpoch       prometheus.Gauge
	failsafe         prometheus.Gauge

	tick      prometheus.Histogram
	decisions *prometheus.CounterVec
	events    *prometheus.CounterVec
	failovers *prometheus.CounterVec
	sick      *prometheus.GaugeVec
}

// tickBuckets reach from a good disk's commit to a stall that costs leases, in seconds.
var tickBuckets = []float64{.002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5}

// NewMetrics returns the metrics of node name in cluster scope, run by the given version of the program.
func NewMetrics(scope, name, version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	reg := prometheus.WrapRegistererWith(prometheus.Labels{"scope": scope, "name": name}, m.registry)
	m.labelled = reg

	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		reg.MustRegister(c)
		return c
	}
	m.raftLeader = gauge("matriarch_raft_leader", "1 if this node leads the control plane, else 0.")
	m.raftTerm = gauge("matriarch_raft_term", "Raft term this node is in.")
	m.raftApplied = gauge("matriarch_raft_applied_index", "Last log entry applied to this node's copy of the state.")
	m.leaseRemaining = gauge("matriarch_lease_remaining_seconds", "Time left of the lease this node holds, 0 if it holds none.")
	m.leaseIncarnation = gauge("matriarch_lease_incarnation", "First half of the epoch of the lease this node holds, 0 if it holds none.")
	m.failsafe = gauge("matriarch_failsafe_active", "1 while the primary here is up without a Raft majority, on the words of its group's members.")
	m.leaseEpoch = gauge("matriarch_lease_epoch", "Second half of the epoch of the lease this node holds, 0 if it holds none.")
	m.setAside = gauge("matriarch_set_aside", "Former data directories that this node keeps aside.")
	m.weakFence = gauge("matriarch_fence_weak", "1 while an adopted server has not been restarted under the sentinel, else 0.")
	m.leaderContact = gauge("matriarch_raft_leader_contact_seconds", "Time since this node heard of the leader of the control plane, 0 on the leader.")
	m.decisions = vec("matriarch_rule_decisions_total", "Decisions taken by each rule.", "rule")
	m.events = vec("matriarch_events_total", "Events of each kind.", "kind")
	m.failovers = vec("matriarch_failovers_total", "Times that a primary of the group opened for clients under a new epoch, as this node saw it.", "group")

	m.elections = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "matriarch_elections_total", Help: "Times this node became the leader of the control plane.",
	})
	m.tick = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "matriarch_tick_duration_seconds", Help: "From the proposal of a tick of leases to its commit, on the leader.", Buckets: tickBuckets,
	})
	m.sick = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "matriarch_postgres_sick", Help: "1 for what ails this node's PostgreSQL or its disks, 0 for every other reason."}, []string{"reason"})
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "matriarch_build_info", Help: "Always 1; the version is the label.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	reg.MustRegister(m.elections, m.tick, m.sick, build, &m.patroni, &m.proxy, &m.slots, &m.formation,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves the metrics in Prometheus' text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Sick sets the one reason that holds, of all there are; empty: none.
func (m *Metrics) Sick(reason string, all []string) {
	for _, r := range all {
		m.sick.WithLabelValues(r).Set(number(r == reason))
	}
}

// Decision counts a decision taken by the rule with this id.
func (m *Metrics) Decision(rule string) { m.decisions.WithLabelValues(rule).Inc() }

// Raft sets whether this node leads, its term and the last entry it applied.
func (m *Metrics) Raft(leader bool, term, applied uint64) {
	m.raftLeader.Set(number(leader))
	m.raftTerm.Set(float64(term))
	m.raftApplied.Set(float64(applied))
}

// Election counts that this node became the leader of the control plane.
func (m *Metrics) Election() { m.elections.Inc() }

// Lease sets the epoch and the time left of the lease that this node holds; the zero epoch means none.
func (m *Metrics) Lease(epoch fsm.Epoch, remaining time.Duration) {
	if epoch.IsZero() {
		remaining = 0
	}
	m.leaseIncarnation.Set(float64(epoch.Inc))
	m.leaseEpoch.Set(float64(epoch.N))
	m.leaseRemaining.Set(max(remaining, 0).Seconds())
}

// Failsafe tells whether the primary here is up on the members' words instead of its lease.
func (m *Metrics) Failsafe(active bool) {
	m.failsafe.Set(0)
	if active {
		m.failsafe.Set(1)
	}
}

// Tick records how long one tick took from proposal to commit.
func (m *Metrics) Tick(d time.Duration) { m.tick.Observe(d.Seconds()) }

// Failover counts that a primary of the group opened under a new epoch.
func (m *Metrics) Failover(group fsm.GroupID) {
	m.failovers.WithLabelValues(strconv.Itoa(int(group))).Inc()
}

// Patroni replaces what the patroni_* series say.
func (m *Metrics) Patroni(s Patroni) { m.patroni.current.Store(&s) }

func (m *Metrics) event(k Kind) { m.events.WithLabelValues(string(k)).Inc() }

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// patroniCollector turns the last Patroni into series at each scrape, so that all of them are of one moment.
type patroniCollector struct {
	current atomic.Pointer[Patroni]
}

// Describe sends the description of every patroni_* series.
func (c *patroniCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, s := range patroniSeries {
		ch <- s.desc
	}
}

// Collect sends the values; none before the first Patroni.
func (c *patroniCollector) Collect(ch chan<- prometheus.Metric) {
	p := c.current.Load()
	if p == nil {
		return
	}
	for _, s := range patroniSeries {
		ch <- prometheus.MustNewConstMetric(s.desc, s.kind, s.value(p))
	}
}
