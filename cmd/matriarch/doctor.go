package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/config"
	"matriarch/internal/doctor"
	"matriarch/internal/identity"
	"matriarch/pgmanager"
	"matriarch/transport"
)

func (p *program) doctorVerb() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "examine this host, before it becomes a node and afterwards", Category: "Look",
		Description: "Looks at PostgreSQL, Citus, clocks, disks, ports, the other nodes, kernel settings, names, watchdog, rights and certificates, and says what to do about\n" +
			"what it does not like. Changes nothing. Exit code 1: at least one line says fail.\n" +
			"Example:\n   matriarch doctor\n   matriarch doctor --peer 10.0.0.11:7400 --data-dir /data/pg",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "peer", Usage: "`HOST:PORT` that must be reached; may be repeated"},
			&cli.StringFlag{Name: "pg-bin", Usage: "`DIR` of PostgreSQL's programs, instead of the configuration's"},
			&cli.StringFlag{Name: "state-dir", Usage: "`DIR` for everything of Matriarch's, instead of the configuration's"},
			&cli.StringFlag{Name: "data-dir", Usage: "PostgreSQL's data `DIR`, instead of the configuration's"},
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			found := doctor.Examine(p.gather(c.Context, p.doctorRequest(c, true)))
			v := struct {
				Worst    doctor.Level     `json:"worst"`
				Findings []doctor.Finding `json:"findings"`
			}{doctor.Worst(found), found}
			if err := emit(c, v, func(w io.Writer) { renderFindings(w, found) }); err != nil {
				return err
			}
			if v.Worst == doctor.Fail {
				return errSaid
			}
			return nil
		},
	}
}

func gatherHere(ctx context.Context, q doctor.Request) doctor.Facts {
	return doctor.Gather(ctx, doctor.Local{}, q)
}

// findPrograms is pgmanager.Find as the doctor wants it.
func findPrograms(binDir string) (string, error) {
	t, err := pgmanager.Find(binDir)
	return t.Dir, err
}

// doctorRequest is what the doctor is told; a host that is no node yet is examined with the defaults. The other nodes are asked if wanted.
func (p *program) doctorRequest(c *cli.Context, others bool) doctor.Request {
	q := doctor.Request{ConfigFile: c.String("config"), Config: config.Default().Complete(), Find: findPrograms}
	if free, err := config.Free(q.ConfigFile); err != nil || !free {
		q.Configured = true
		cfg, err := config.Load(q.ConfigFile)
		if err != nil {
			q.ConfigErr = err.Error()
		} else {
			q.Config = cfg
		}
	}
	if c.IsSet("state-dir") {
		q.Config = config.Default()
		q.Config.StateDir = c.String("state-dir")
		q.Config = q.Config.Complete()
	}
	q.Config.PostgreSQL.BinDir = cmp.Or(c.String("pg-bin"), q.Config.PostgreSQL.BinDir)
	q.Config.PostgreSQL.DataDir = cmp.Or(c.String("data-dir"), q.Config.PostgreSQL.DataDir)
	for _, addr := range c.StringSlice("peer") {
		q.Reach = append(q.Reach, doctor.Reach{Node: addr, What: "the port given", Addr: addr})
	}
	if others && q.Configured && q.ConfigErr == "" {
		p.askCluster(c.Context, &q)
	}
	return q
}

// askCluster adds what the nodes say; nobody has to answer.
func (p *program) askCluster(ctx context.Context, q *doctor.Request) {
	cl, err := p.open(q.Config)
	if err != nil {
		return
	}
	defer cl.Close()
	self := cl.Self()
	if own, err := cl.StatusOf(ctx, fsm.Node{ID: self.NodeID, Name: self.Name, Peer: q.Config.Advertise}); err == nil && own.Self != nil {
		q.AgentPID = own.Self.Processes.Agent
	}
	for _, n := range othersOf(ctx, cl, q.Config.StateDir) {
		q.Reach = append(q.Reach, doctor.Reach{Node: n.Name, What: "the peer port", Addr: n.Peer})
		if n.Postgres != "" {
			q.Reach = append(q.Reach, doctor.Reach{Node: n.Name, What: "PostgreSQL", Addr: n.Postgres})
		}
		asked := p.now()
		other, err := cl.StatusOf(ctx, n)
		if errors.Is(err, transport.ErrOtherCA) {
			q.Strangers = append(q.Strangers, n.Name)
		}
		if err != nil {
			continue
		}
		took := p.now().Sub(asked)
		q.PeerClocks = append(q.PeerClocks, doctor.PeerClock{Name: n.Name, Offset: other.At.Sub(asked.Add(took / 2)), Within: took/2 + time.Millisecond})
	}
}

// othersOf are the other nodes, by the state or, where this node has none yet, as they were last known.
func othersOf(ctx context.Context, cl cluster, stateDir string) (out []fsm.Node) {
	self := cl.Self().NodeID
	if st, err := cl.Status(ctx); err == nil && len(st.State.Nodes) > 0 {
		for _, id := range st.State.NodeIDs() {
			if id != self {
				out = append(out, st.State.Nodes[id])
			}
		}
		return out
	}
	peers, err := identity.Dir(stateDir).Peers()
	if err != nil {
		return nil
	}
	for _, p := range peers {
		if p.ID != self {
			out = append(out, fsm.Node{ID: p.ID, Name: p.Name, Peer: p.Addr})
		}
	}
	return out
}

func renderFindings(w io.Writer, found []doctor.Finding) {
	width := 0
	for _, f := range found {
		width = max(width, len(f.Check))
	}
	count := map[doctor.Level]int{}
	for _, f := range found {
		count[f.Level]++
		fmt.Fprintf(w, "%-4s  %-*s  %s\n", f.Level, width, f.Check, f.Says)
		if f.Do != "" {
			fmt.Fprintf(w, "      %-*s  -> %s\n", width, "", f.Do)
		}
	}
	fmt.Fprintf(w, "%d ok, %d warn, %d fail\n", count[doctor.OK], count[doctor.Warn], count[doctor.Fail])
}
