package obs

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Slot is one replication slot of the node's server.
type Slot struct {
	Name, Type   string
	Active, Lost bool
	Retained     int64 // bytes of log
}

// Slots replaces what the matriarch_replication_slot_* series say.
func (m *Metrics) Slots(all []Slot) { m.slots.current.Store(&all) }

// slotCollector shows the slots of the last look.
type slotCollector struct {
	current atomic.Pointer[[]Slot]
}

func slotDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("matriarch_replication_slot_"+name, help, []string{"slot", "type"}, nil)
}

var (
	slotActive   = slotDesc("active", "1 if somebody uses the slot, else 0.")
	slotLost     = slotDesc("lost", "1 if the log that the slot needs is gone, else 0.")
	slotRetained = slotDesc("retained_bytes", "Log that is kept for the slot.")
)

// Describe sends the description of every series.
func (c *slotCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- slotActive
	ch <- slotLost
	ch <- slotRetained
}

// Collect sends the values.
func (c *slotCollector) Collect(ch chan<- prometheus.Metric) {
	all := c.current.Load()
	if all == nil {
		return
	}
	for _, s := range *all {
		for d, v := range map[*prometheus.Desc]float64{slotActive: number(s.Active), slotLost: number(s.Lost), slotRetained: float64(s.Retained)} {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, s.Name, s.Type)
		}
	}
}
