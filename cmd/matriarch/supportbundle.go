package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/bundle"
	"matriarch/internal/config"
	"matriarch/internal/identity"
)

func (p *program) supportVerb() *cli.Command {
	return &cli.Command{
		Name: "support-bundle", Usage: "gather state, logs and settings, without secrets, in one archive", ArgsUsage: "[FILE]", Category: "Look",
		Description: "Gathers what somebody needs who helps from afar: the state, list, explain and history, and of every node that answers its status, doctor's answer, logs, metrics,\n" +
			"PostgreSQL's settings and pg_controldata. Passwords, keys and tokens are taken out; names, addresses and SQL in PostgreSQL's log are not: look before you send it.\n" +
			"Example:\n   matriarch support-bundle /tmp/support.tar.gz\n   matriarch support-bundle --local",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "local", Usage: "only this host; ask no other"}},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "[FILE]")
			if err != nil {
				return err
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			file := "matriarch-support-" + cfg.Node.Name + "-" + p.now().UTC().Format("20060102T150405Z") + ".tar.gz"
			if len(args) > 0 {
				file = args[0]
			}
			return p.supportBundle(c, cfg, file)
		},
	}
}

func (p *program) supportBundle(c *cli.Context, cfg config.Config, file string) (err error) {
	redact, err := redactorOf(identity.Dir(cfg.StateDir))
	if err != nil {
		return err
	}
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("support-bundle: %w", err)
	}
	w := bundle.NewWriter(out, "matriarch-support", redact, p.now())
	files, missing := p.bundleFiles(c, cfg)
	if len(missing) > 0 {
		files["missing.txt"] = strings.Join(missing, "\n") + "\n"
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err = errors.Join(err, w.Add(name, []byte(files[name])))
	}
	if err = errors.Join(err, w.Close(), out.Sync(), out.Close()); err != nil {
		return errors.Join(fmt.Errorf("support-bundle: %w", err), os.Remove(file))
	}
	for _, m := range missing {
		fmt.Fprintf(p.err, "matriarch: not in it: %s\n", m)
	}
	return emit(c, map[string]any{"file": file, "missing": missing}, func(w io.Writer) {
		fmt.Fprintf(w, "wrote %s (%d files)\n", file, len(files))
	})
}

// bundleFiles are all texts by name, and what could not be had.
func (p *program) bundleFiles(c *cli.Context, cfg config.Config) (files map[string]string, missing []string) {
	files = map[string]string{}
	for name, text := range gatherFiles(c.Context, p.doctorRequest(c, !c.Bool("local")), p.gather) {
		files["nodes/"+cfg.Node.Name+"/"+name] = text
	}
	cl, err := p.open(cfg)
	if err != nil {
		return files, []string{err.Error()}
	}
	defer cl.Close()
	st, err := cl.Formation(c.Context)
	if err != nil {
		return files, []string{err.Error()}
	}
	p.formationFiles(st, files)
	nodes := slices.SortedFunc(maps.Values(st.State.Nodes), func(a, b fsm.Node) int { return strings.Compare(a.Name, b.Name) })
	if c.Bool("local") {
		nodes = slices.DeleteFunc(nodes, func(n fsm.Node) bool { return n.ID != cl.Self().NodeID })
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			got, errs := askNode(c.Context, cl, n)
			mu.Lock()
			defer mu.Unlock()
			for name, text := range got {
				files["nodes/"+n.Name+"/"+name] = text
			}
			for _, err := range errs {
				missing = append(missing, err.Error())
			}
		})
	}
	wg.Wait()
	slices.Sort(missing)
	return files, missing
}

// formationFiles is the cluster as the leader, or whoever answers, knows it.
func (p *program) formationFiles(st admin.Status, files map[string]string) {
	f := admin.NewFormation(st)
	files["formation/formation.json"] = indented(f)
	files["formation/state.json"] = indented(st.Public().State)
	files["formation/history.json"] = indented(st.State.History)
	var list bytes.Buffer
	renderList(&list, f, p.now())
	files["formation/list.txt"] = list.String()
	for id := range st.State.Groups {
		if e, err := groupExplanation(st, id); err == nil {
			var b bytes.Buffer
			renderGroup(&b, e)
			files[fmt.Sprintf("formation/explain-group-%d.txt", id)] = b.String()
		}
	}
}

// askNode asks for a node's status and, of another host, for its files.
func askNode(ctx context.Context, cl cluster, n fsm.Node) (files map[string]string, errs []error) {
	files = map[string]string{}
	if n.ID != cl.Self().NodeID {
		got, err := cl.Support(ctx, n)
		if err != nil {
			errs = append(errs, err)
		}
		maps.Copy(files, got)
	}
	st, err := cl.StatusOf(ctx, n)
	if err != nil {
		return files, append(errs, err)
	}
	st = st.Public()
	if e, err := nodeExplanation(n, st); err == nil {
		var b bytes.Buffer
		renderExplanation(&b, e)
		files["explain.txt"] = b.String()
	}
	st.State = nil // it is in formation/
	files["status.json"] = indented(st)
	return files, errs
}

func indented(v any) string {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(b) + "\n"
}
