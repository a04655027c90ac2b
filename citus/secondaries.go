package citus

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"matriarch/fsm"
)

// Standing says how much a standby deserves its row.
type Standing int

// The standings, best first.
const (
	Serving  Standing = iota // gets a row
	Doubtful                 // keeps the row it has
	Away                     // loses its row when it stays away
)

// Secondary is one standby of a group.
type Secondary struct {
	Addr        Addr
	NodeCluster string // sessions choose one by citus.cluster_name
	Standing    Standing
}

// clusterTag is the user tag that puts a standby into another node cluster.
const clusterTag = "nodecluster"

// reportsApart is how far apart two reports can be because positions travel seldom. A standby that was silent for longer has
// stopped moving.
const reportsApart = 15 * time.Second

// standbys lists the members of a group that may be read from, by address.
func standbys(s *fsm.State, g fsm.Group, primary fsm.Node) ([]Secondary, error) {
	out := []Secondary{}
	var lagging []int
	serving := false
	for _, n := range s.Members(g.ID) {
		if n.ID == primary.ID || n.Tags.NoLoadBalance {
			continue
		}
		addr, err := ParseAddr(n.Postgres)
		if err != nil {
			return nil, fmt.Errorf("address of node %s: %w", n.Name, err)
		}
		x := Secondary{Addr: addr, NodeCluster: defaultCluster, Standing: Away}
		if c := n.Tags.User[clusterTag]; c != "" {
			x.NodeCluster = c
		}
		if n.Report.State == "streaming" && n.Report.Epoch == g.Epoch {
			x.Standing = standing(primary.Report, n.Report, s.Cluster.Settings.CitusSecondaryLag)
			if x.Standing == Away {
				lagging = append(lagging, len(out))
			}
		}
		serving = serving || x.Standing == Serving
		out = append(out, x)
	}
	if !serving { // a late answer is better than an error
		for _, i := range lagging {
			out[i].Standing = Doubtful
		}
	}
	slices.SortFunc(out, func(a, b Secondary) int { return strings.Compare(a.Addr.String(), b.Addr.String()) })
	return out, nil
}

// standing judges a streaming standby by its lag. The positions are of different moments: that of an older report proves no lag.
func standing(primary, standby fsm.Report, limit int64) Standing {
	early := primary.At.Sub(standby.At)
	switch {
	case int64(primary.Replay)-int64(standby.Replay) <= limit:
		return Serving
	case early > 0 && early <= reportsApart:
		return Doubtful
	}
	return Away
}

// graceTime is how long a standby may be away before it loses its row: a restart is no reason.
const graceTime = 10 * time.Second

// hold lets standbys that have a row and went away only a moment ago keep it. rows are the coordinator's.
func (p *Pool) hold(want Wanted, rows []Row, now time.Time) Wanted {
	if want.Secondaries == nil {
		return want
	}
	has := map[Addr]bool{}
	for _, r := range rows {
		has[r.Addr] = true
	}
	before, away := p.away[want.Database], map[Addr]time.Time{}
	held := maps.Clone(want.Secondaries)
	for g, list := range held {
		held[g] = slices.Clone(list)
		for i, s := range list {
			since, known := before[s.Addr]
			switch {
			case !has[s.Addr] || s.Standing == Serving:
				continue
			case s.Standing == Doubtful:
				if known {
					away[s.Addr] = since
				}
				continue
			case !known:
				since = now
			}
			away[s.Addr] = since
			if now.Sub(since) < graceTime {
				held[g][i].Standing = Doubtful
			}
		}
	}
	p.away[want.Database] = away
	want.Secondaries = held
	return want
}

// seats finds the addresses for the secondary rows of a group: a row stays where a standby deserves it; the others take
// the addresses of standbys without a row, so that no row has to be added or removed. The rest is left out.
func seats(rows []Row, standbys []Secondary) map[int]Secondary {
	out := map[int]Secondary{}
	seated := map[Addr]bool{}
	var free []Row
	for _, r := range rows {
		i := slices.IndexFunc(standbys, func(s Secondary) bool { return s.Addr == r.Addr && s.Standing != Away })
		if i < 0 {
			free = append(free, r)
			continue
		}
		out[r.NodeID], seated[r.Addr] = standbys[i], true
	}
	for _, s := range standbys {
		if s.Standing != Serving || seated[s.Addr] || len(free) == 0 {
			continue
		}
		i := max(0, slices.IndexFunc(free, func(r Row) bool { return r.Cluster == s.NodeCluster }))
		out[free[i].NodeID] = s
		free = slices.Delete(free, i, i+1)
	}
	return out
}
