package obs

import "testing"

func TestProxySeries(t *testing.T) {
	m := NewMetrics("c", "n1", "1.2.3")
	const coordinator = `{listener="coordinator",name="n1",scope="c"}`
	if got := value(t, m, "matriarch_proxy_active"+coordinator); got != "" {
		t.Errorf("a node without a proxy says %q", got)
	}
	m.Proxy([]Proxy{
		{Listener: "coordinator", Active: 3, Waiting: 2, Accepted: 17, Cancels: 4, Deposed: 5, ToServer: 600, ToClient: 700, Refused: map[string]uint64{"no_server": 8}},
		{Listener: "standby", Active: 1},
	})
	for series, want := range map[string]string{
		"active" + coordinator:         "3",
		"waiting" + coordinator:        "2",
		"accepted_total" + coordinator: "17",
		"cancels_total" + coordinator:  "4",
		"deposed_total" + coordinator:  "5",
		`bytes_total{direction="to_server",listener="coordinator",name="n1",scope="c"}`: "600",
		`bytes_total{direction="to_client",listener="coordinator",name="n1",scope="c"}`: "700",
		`refused_total{listener="coordinator",name="n1",reason="no_server",scope="c"}`:  "8",
		`active{listener="standby",name="n1",scope="c"}`:                                "1",
	} {
		if got := value(t, m, "matriarch_proxy_"+series); got != want {
			t.Errorf("matriarch_proxy_%s is %q, want %q", series, got, want)
		}
	}
}
