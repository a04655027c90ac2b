package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/consensus"
	"matriarch/fsm"
	"matriarch/internal/config"
	"matriarch/internal/identity"
)

func (p *program) snapshotVerb() *cli.Command {
	return &cli.Command{
		Name: "snapshot", Usage: "save the control plane to a file, look into one, rebuild from one", Category: "Make and run nodes",
		Description: "The file holds the replicated state, the CA with its key and the generated passwords: keep it where you keep such things. It holds no data of PostgreSQL.\nExample:\n   matriarch snapshot save /root/matriarch.snapshot",
		Subcommands: []*cli.Command{
			{
				Name: "save", Usage: "write the control plane to a new file", ArgsUsage: "FILE",
				Description: "Reads the newest state through the leader. The file gets mode 0600.\nExample:\n   matriarch snapshot save /root/matriarch.snapshot",
				Action:      p.snapshotSave,
			},
			{
				Name: "inspect", Usage: "show what a file holds, without its secrets", ArgsUsage: "FILE",
				Description: "Checks the file as well. Needs no running node.\nExample:\n   matriarch snapshot inspect /root/matriarch.snapshot",
				Action:      p.snapshotInspect,
			},
			{
				Name: "restore", Usage: "make this host the first node of a new incarnation of the control plane", ArgsUsage: "FILE",
				Description: "For the day when all nodes have lost their Raft state; while one still has it, use `matriarch recover` there instead, which knows more. Stop matriarch on every\n" +
					"host first. This host must be one of the nodes in the file, named by its configuration file (node: name). Its old Raft state is set aside, PostgreSQL's data is\n" +
					"not touched. All other nodes join again. A group gets a primary once all its members are back, or when an operator names the data directory to trust\n" +
					"(matriarch failover --group G --candidate N --trust).\nExample:\n   matriarch snapshot restore /root/matriarch.snapshot",
				Flags:  []cli.Flag{&cli.StringFlag{Name: "confirm", Usage: "`NAME` of this node, instead of typing it"}},
				Action: p.snapshotRestore,
			},
		},
	}
}

// snapshotView is what may be shown of a file.
type snapshotView struct {
	File        string         `json:"file"`
	Made        time.Time      `json:"made"`
	Version     string         `json:"version"`
	ClusterID   string         `json:"cluster_id"`
	Incarnation uint64         `json:"incarnation"`
	Index       uint64         `json:"index"`
	Gate        int            `json:"gate"`
	Nodes       []snapshotNode `json:"nodes"`
	Groups      []snapshotPart `json:"groups"`
}

type snapshotNode struct {
	Name  string     `json:"member"`
	ID    fsm.NodeID `json:"id"` // node.id of its configuration file
	Peer  string     `json:"peer"`
	Group int        `json:"group"`
}

type snapshotPart struct {
	ID      fsm.GroupID `json:"group"`
	Primary string      `json:"primary"`
	Epoch   string      `json:"epoch"`
	Members []string    `json:"members"`
}

func viewBackup(file string, b backup, s *fsm.State) snapshotView {
	v := snapshotView{File: file, Made: b.Made, Version: b.Version, ClusterID: b.ClusterID, Incarnation: b.Incarnation, Index: b.Index, Gate: s.Cluster.Gate}
	for _, id := range s.NodeIDs() {
		n := s.Nodes[id]
		v.Nodes = append(v.Nodes, snapshotNode{n.Name, id, n.Peer, int(n.Group)})
	}
	for _, id := range s.GroupIDs() {
		g := snapshotPart{ID: id, Primary: s.Name(s.Groups[id].LastHolder), Epoch: s.Groups[id].Epoch.String()}
		for _, n := range s.Members(id) {
			g.Members = append(g.Members, n.Name)
		}
		v.Groups = append(v.Groups, g)
	}
	return v
}

func (v snapshotView) render(w io.Writer) {
	fmt.Fprintf(w, "%s, made %s by matriarch %s\ncluster %s: incarnation %d, index %d, %d nodes\n", v.File, v.Made.Format(time.RFC3339), v.Version, v.ClusterID, v.Incarnation, v.Index, len(v.Nodes))
	for _, g := range v.Groups {
		fmt.Fprintf(w, "  group %d: last primary %s, epoch %s, members", g.ID, g.Primary, g.Epoch)
		for _, m := range g.Members {
			fmt.Fprintf(w, " %s", m)
		}
		fmt.Fprintln(w)
	}
}

func (p *program) snapshotSave(c *cli.Context) error {
	args, err := arguments(c, "FILE")
	if err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	cl, err := p.open(cfg)
	if err != nil {
		return err
	}
	defer cl.Close()
	state, err := cl.Snapshot(c.Context)
	if err != nil {
		return err
	}
	b, s, err := newBackup(state, identity.Dir(cfg.StateDir), p.now())
	if err != nil {
		return err
	}
	if err := b.write(args[0]); err != nil {
		return err
	}
	v := viewBackup(args[0], b, s)
	return emit(c, v, func(w io.Writer) {
		v.render(w)
		fmt.Fprintln(w, "It holds the CA's key and the passwords: keep it as safe as those.")
	})
}

func (p *program) snapshotInspect(c *cli.Context) error {
	args, err := arguments(c, "FILE")
	if err != nil {
		return err
	}
	b, s, err := readBackup(args[0])
	if err != nil {
		return err
	}
	v := viewBackup(args[0], b, s)
	return emit(c, v, v.render)
}

func (p *program) snapshotRestore(c *cli.Context) error {
	args, err := arguments(c, "FILE")
	if err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	b, s, err := readBackup(args[0])
	if err != nil {
		return err
	}
	id, known, err := restoredIdentity(cfg, b, s)
	if err != nil {
		return err
	}
	if err := notRunning(cfg.RaftDir); err != nil {
		return err
	}
	viewBackup(args[0], b, s).render(c.App.Writer)
	if err := confirmName(c, id.Name); err != nil {
		return err
	}
	dir := identity.Dir(cfg.StateDir)
	if !known {
		if err := b.found(dir, s.Nodes[id.NodeID], p.now()); err != nil {
			return err
		}
	}
	// As in recover: should this end half-way, nobody of the old incarnation is let in.
	id.Incarnation = max(id.Incarnation, b.Incarnation) + 1
	if err := dir.Save(id); err != nil {
		return err
	}
	aside, err := p.setRaftAside(cfg.RaftDir)
	if err != nil {
		return err
	}
	if err := consensus.Restore(cfg.RaftDir, id.NodeID, s); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "control plane rebuilt as of %s: %s is the only voter, incarnation %d\n%s"+
		"1. start it: matriarch run --config %s\n2. make a token: matriarch token create\n"+
		"3. on every other host: stop matriarch, run the join line it prints with the host's own flags, start matriarch\n",
		b.Made.Format(time.RFC3339), id.Name, id.Incarnation, aside, c.String("config"))
	return nil
}

// restoredIdentity is who this host is in the snapshot: by its own identity where it has one, else by its configured name.
func restoredIdentity(cfg config.Config, b backup, s *fsm.State) (id identity.Identity, known bool, err error) {
	dir := identity.Dir(cfg.StateDir)
	if !dir.Exists() {
		n, ok := s.NodeByName(cfg.Node.Name)
		switch {
		case !ok:
			return id, false, fmt.Errorf("snapshot restore: no node of the snapshot is called %q (node: name in the configuration): nothing was changed", cfg.Node.Name)
		case string(n.ID) != cfg.Node.ID:
			return id, false, fmt.Errorf("snapshot restore: %s has the id %s in the snapshot, not %s: write that as node: id into the configuration; nothing was changed", n.Name, n.ID, cfg.Node.ID)
		}
		return identity.Identity{ClusterID: b.ClusterID, NodeID: n.ID, Name: n.Name}, false, nil
	}
	if id, err = dir.Load(); err != nil {
		return id, false, err
	}
	if id.ClusterID != b.ClusterID {
		return id, false, fmt.Errorf("snapshot restore: this host belongs to cluster %s, the snapshot to %s: nothing was changed", id.ClusterID, b.ClusterID)
	}
	if _, ok := s.Nodes[id.NodeID]; !ok {
		return id, false, fmt.Errorf("snapshot restore: %s is not among the nodes of the snapshot: use a host that is; nothing was changed", id.Name)
	}
	return id, true, nil
}

// found gives an empty state directory what every node has. The identity itself comes later, and makes it count.
func (b backup) found(dir identity.Dir, n fsm.Node, now time.Time) error {
	m, err := b.material(n, now)
	if err != nil {
		return err
	}
	if err := dir.SaveMaterial(m); err != nil {
		return err
	}
	return dir.SaveSecrets(b.Secrets)
}

// notRunning refuses a folder on which a matriarch runs.
func notRunning(raftDir string) error {
	_, _, _, err := consensus.Inspect(raftDir)
	if errors.Is(err, consensus.ErrRunning) {
		return err
	}
	return nil // damaged or absent: it is set aside, whatever it is
}

func (p *program) setRaftAside(raftDir string) (string, error) {
	aside := fmt.Sprintf("%s.before-restore-%s", raftDir, p.now().UTC().Format("20060102T150405"))
	err := os.Rename(raftDir, aside)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("set the old Raft state aside: %w", err)
	}
	return fmt.Sprintf("the Raft state that was here is in %s\n", aside), nil
}
