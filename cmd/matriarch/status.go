package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/agent"
	"matriarch/internal/proxy"
)

func (p *program) statusVerb() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show the formation in short, or one node in detail", ArgsUsage: "[NODE]", Category: "Look",
		Description: "Without a node: is the formation healthy, and if not, why. With one: what that node itself says.\nExample:\n   matriarch status\n   matriarch status work1-2",
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "[NODE]")
			if err != nil {
				return err
			}
			cl, err := p.connect(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			st, err := cl.Formation(c.Context)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				f := admin.NewFormation(st)
				return emit(c, f, func(w io.Writer) { renderStatus(w, f, st.State) })
			}
			return p.statusOf(c, cl, st, args[0])
		},
	}
}

// nodeView is one node: as the leader sees it, and as it sees itself when it answers.
type nodeView struct {
	Member  admin.Member          `json:"member"`
	Version string                `json:"version,omitempty"`
	Self    *admin.Self           `json:"self,omitempty"`
	Raft    *admin.Raft           `json:"raft,omitempty"`
	Proxy   []proxy.ListenerStats `json:"proxy,omitempty"` // its listeners for clients
	Error   string                `json:"error,omitempty"` // why it did not answer
}

func (p *program) statusOf(c *cli.Context, cl cluster, st admin.Status, name string) error {
	n, err := nodeNamed(st.State, name)
	if err != nil {
		return err
	}
	members := admin.Members(st)
	v := nodeView{Member: members[slices.IndexFunc(members, func(m admin.Member) bool { return m.ID == n.ID })], Version: n.Version}
	if own, err := cl.StatusOf(c.Context, n); err != nil {
		v.Error = err.Error()
	} else {
		v.Version, v.Self, v.Raft, v.Proxy = own.Version, own.Self, &own.Raft, own.Proxy
	}
	if err := emit(c, v, func(w io.Writer) { renderNode(w, v, st.State) }); err != nil {
		return err
	}
	if v.Error != "" {
		return errSaid
	}
	return nil
}

// nodeNamed finds a node by name or id, or says which there are.
func nodeNamed(s *fsm.State, name string) (fsm.Node, error) {
	if n, ok := s.NodeByName(name); ok {
		return n, nil
	}
	var names []string
	for _, n := range s.Nodes {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return fsm.Node{}, fmt.Errorf("there is no node %q: nodes are %s", name, strings.Join(names, ", "))
}

func renderStatus(w io.Writer, f admin.Formation, s *fsm.State) {
	health := "healthy"
	if !f.Healthy {
		health = "not healthy"
	}
	pairs(w,
		"cluster", fmt.Sprintf("%s, incarnation %d", f.ClusterID, f.Incarnation),
		"formation", fmt.Sprintf("%s: %d nodes in %d groups", health, len(f.Members), len(f.Groups)),
		"raft", strings.TrimPrefix(raftText(f.Raft), "Raft: "),
		"answered by", f.AnsweredBy,
		"lease", s.Cluster.Settings.TTL.String(),
	)
	for _, g := range f.Groups {
		primary := "no primary"
		if g.Primary != "" {
			primary = "primary " + g.Primary
		}
		fmt.Fprintf(w, "  %s, %s\n", groupText(g), primary)
	}
	renderTroubles(w, f)
}

func renderNode(w io.Writer, v nodeView, s *fsm.State) {
	m := v.Member
	pairs(w,
		"node", fmt.Sprintf("%s (%s), version %s", m.Name, m.ID, v.Version),
		"group", strconv.Itoa(int(m.Group)),
		"role", m.Role+", "+stateText(m),
		"postgresql", m.Host, "peers", m.Peer, "api", m.API, "zone", m.Zone, "tags", tagText(m.Tags), "raft", m.Suffrage, "fence", m.Fence,
		"watchdog", m.Watchdog, "unfit", m.Unfit, "sick", m.Sick,
	)
	if v.Error != "" {
		fmt.Fprintf(w, "! %s\n", v.Error)
	}
	if v.Self == nil {
		return
	}
	self := v.Self
	pairs(w,
		"rule", fmt.Sprintf("%s %s: %s", self.Rule, self.Name, self.Reason),
		"since", self.Since.Format(time.RFC3339),
		"action", self.Job, "failed", self.Failed, "set aside", strings.Join(self.SetAside, "\n"),
		"lease", leaseText(self),
		"failsafe", failsafeText(self.Failsafe, s),
		"sentinel", fmt.Sprintf("%s, pid %d, instance %s", self.Sentinel, self.Processes.Sentinel, self.Instance),
		"agent", fmt.Sprintf("pid %d, last decision %s ago", self.Processes.Agent, self.Age.Round(time.Millisecond)),
		"server", serverText(self),
	)
	for _, x := range self.Postgres.Senders {
		state := fmt.Sprintf("streams, %s behind", size(x.Lag))
		if !x.Streaming {
			state = fmt.Sprintf("missing for %s", x.Missing.Round(time.Second))
		}
		fmt.Fprintf(w, "  standby %s: %s\n", s.Name(x.Node), state)
	}
	for _, x := range self.Slots {
		use := "not in use"
		if x.Active {
			use = "in use"
		}
		fmt.Fprintf(w, "  slot %s (%s, %s): %s, WAL %s, keeps %s\n", x.Name, x.Type, admin.SlotKind(s.Groups[m.Group], x.Name), use, orNone(x.WALStatus), size(x.Retained))
	}
	if m.Slots != "" {
		fmt.Fprintf(w, "- %s\n", m.Slots)
	}
	renderProxy(w, v.Proxy)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func leaseText(self *admin.Self) string {
	if self.LeaseLeft <= 0 {
		return ""
	}
	return fmt.Sprintf("epoch %s, %s left", self.Epoch, self.LeaseLeft.Round(10*time.Millisecond))
}

// failsafeText says what a node knows of failsafe, which the replicated state cannot: it is for when that stands still.
func failsafeText(f *agent.Failsafe, s *fsm.State) string {
	if f == nil {
		return ""
	}
	var parts []string
	switch {
	case f.Active:
		parts = append(parts, "active since "+f.Since.Format(time.RFC3339)+": the primary is up on the words of the members")
	case f.On:
		parts = append(parts, fmt.Sprintf("on, %s %s", f.Rule, f.Name))
	}
	for _, id := range slices.Sorted(maps.Keys(f.Without)) {
		parts = append(parts, fmt.Sprintf("%s did not give its word: %s", s.Name(id), f.Without[id]))
	}
	if f.WordLeft > 0 {
		parts = append(parts, fmt.Sprintf("gave its word not to become primary for another %s", f.WordLeft.Round(100*time.Millisecond)))
	}
	return strings.Join(parts, "\n")
}

func serverText(self *admin.Self) string {
	pg := self.Postgres
	switch {
	case self.Postmaster == 0:
		return "not running"
	case !pg.Reachable:
		return fmt.Sprintf("pid %d, does not answer: %s", self.Postmaster, pg.Why)
	}
	kind := "writable"
	if pg.InRecovery {
		kind = "standby, does not stream"
		if pg.Streaming {
			kind = "standby, streams"
		}
	}
	r := self.Report
	return fmt.Sprintf("pid %d, version %s, %s, timeline %d, at %s, lets in: %s", self.Postmaster, pgVersion(r.PGVersion), kind, r.Timeline, r.Replay, pg.Phase)
}

// pgVersion writes server_version_num as people know it.
func pgVersion(num int) string {
	if num < 100000 {
		return strconv.Itoa(num)
	}
	return fmt.Sprintf("%d.%d", num/10000, num%10000)
}
