package obs

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Proxy is what one listener of the node's proxy has done. Refused counts by reason.
type Proxy struct {
	Listener                                       string
	Active, Waiting                                int
	Accepted, Cancels, Deposed, ToServer, ToClient uint64
	Refused                                        map[string]uint64
}

// Proxy replaces what the matriarch_proxy_* series say.
func (m *Metrics) Proxy(listeners []Proxy) { m.proxy.current.Store(&listeners) }

// proxyCollector turns the proxy's own counters into series at each scrape.
type proxyCollector struct {
	current atomic.Pointer[[]Proxy]
}

func proxyDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("matriarch_proxy_"+name, help, append([]string{"listener"}, labels...), nil)
}

var (
	proxyAccepted = proxyDesc("accepted_total", "Connections that clients opened.")
	proxyActive   = proxyDesc("active", "Sessions attached to a server.")
	proxyWaiting  = proxyDesc("waiting", "Clients that wait for a server.")
	proxyRefused  = proxyDesc("refused_total", "Clients turned away.", "reason")
	proxyCancels  = proxyDesc("cancels_total", "Cancel requests passed on.")
	proxyDeposed  = proxyDesc("deposed_total", "Sessions ended because their server lost the role.")
	proxyBytes    = proxyDesc("bytes_total", "Bytes of attached sessions.", "direction")
)

// Describe sends the description of every series.
func (c *proxyCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{proxyAccepted, proxyActive, proxyWaiting, proxyRefused, proxyCancels, proxyDeposed, proxyBytes} {
		ch <- d
	}
}

// Collect sends the values; none without a listener.
func (c *proxyCollector) Collect(ch chan<- prometheus.Metric) {
	listeners := c.current.Load()
	if listeners == nil {
		return
	}
	for _, l := range *listeners {
		gauge := func(d *prometheus.Desc, n int) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), l.Listener)
		}
		count := func(d *prometheus.Desc, n uint64, label ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), append([]string{l.Listener}, label...)...)
		}
		gauge(proxyActive, l.Active)
		gauge(proxyWaiting, l.Waiting)
		count(proxyAccepted, l.Accepted)
		count(proxyCancels, l.Cancels)
		count(proxyDeposed, l.Deposed)
		count(proxyBytes, l.ToServer, "to_server")
		count(proxyBytes, l.ToClient, "to_client")
		for reason, n := range l.Refused {
			count(proxyRefused, n, reason)
		}
	}
}
