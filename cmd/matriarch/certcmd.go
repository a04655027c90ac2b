package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/identity"
)

func (p *program) certificatesVerb() *cli.Command {
	return &cli.Command{
		Name: "certificates", Usage: "show and renew the nodes' certificates", Category: "Change",
		Description: "Certificates renew themselves after two thirds of their life.\nExample:\n   matriarch certificates show",
		Subcommands: []*cli.Command{
			{
				Name: "show", Usage: "show what every node has, and until when",
				Description: "Asks every node; one that is away is said to be.\nExample:\n   matriarch certificates show",
				Action:      func(c *cli.Context) error { return p.certificates(c, admin.KeysShow) },
			},
			{
				Name: "renew", Usage: "issue every certificate anew, now",
				Description: "Nothing is restarted and no connection ends.\nExample:\n   matriarch certificates renew",
				Action:      func(c *cli.Context) error { return p.certificates(c, admin.KeysRenew) },
			},
		},
	}
}

func (p *program) caVerb() *cli.Command {
	return &cli.Command{
		Name: "ca", Usage: "replace the cluster's CA", Category: "Change",
		Description: "Every node has the CA's key: after one was stolen, remove that node and rotate.\nExample:\n   matriarch ca rotate",
		Subcommands: []*cli.Command{{
			Name: "rotate", Usage: "replace the CA while everything runs",
			Description: "In three steps, each finished on all nodes before the next: trust the new CA too, have it sign everything, trust no other. Run it again when it was\n" +
				"interrupted, on any node: it goes on from where it was. Join tokens made before are worthless afterwards.\nExample:\n   matriarch ca rotate",
			Flags: []cli.Flag{
				&cli.BoolFlag{Name: "force", Usage: "go on although a node is away: it has to join again"},
				&cli.BoolFlag{Name: "abandon", Usage: "forget a replacement that was begun, as long as no node shows certificates of the new CA; nobody else may be at it"},
				yesFlag(),
			},
			Action: p.caRotate,
		}},
	}
}

func (p *program) passwordVerb() *cli.Command {
	return &cli.Command{
		Name: "password", Usage: "change the generated passwords", Category: "Change",
		Description: "Those of the superuser and of the replication user.\nExample:\n   matriarch password rotate",
		Subcommands: []*cli.Command{{
			Name: "rotate", Usage: "draw new passwords and put them in force while everything runs",
			Description: "Needs all nodes, and postgresql_tls both or on: links that log in with the password would fail in between. Run it again when it was interrupted.\n" +
				"Example:\n   matriarch password rotate",
			Flags:  []cli.Flag{yesFlag()},
			Action: p.passwordRotate,
		}},
	}
}

// away names nodes that did not answer.
type away []error

func (a away) Error() string {
	words := make([]string, 0, len(a))
	for _, err := range a {
		words = append(words, err.Error())
	}
	return strings.Join(words, "; ")
}

// everyNode asks every node of the cluster for the same; nodes that fail are listed in the error, which is of type away.
func everyNode(c *cli.Context, cl cluster, r admin.KeysRequest) (answers map[fsm.NodeID]admin.KeysAnswer, s *fsm.State, err error) {
	st, err := cl.Formation(c.Context)
	if err != nil {
		return nil, nil, err
	}
	answers = map[fsm.NodeID]admin.KeysAnswer{}
	var gone away
	for _, id := range st.State.NodeIDs() {
		a, err := cl.Keys(c.Context, st.State.Nodes[id], r)
		if err != nil {
			gone = append(gone, err)
			continue
		}
		answers[id] = a
	}
	if gone != nil {
		return answers, st.State, gone
	}
	return answers, st.State, nil
}

func (p *program) certificates(c *cli.Context, do string) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	cl, err := p.connect(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	answers, s, err := everyNode(c, cl, admin.KeysRequest{Do: do})
	gone, some := errors.AsType[away](err)
	if err != nil && !some {
		return err
	}
	out := make([]any, 0, len(answers))
	var rows [][]string
	for _, id := range s.NodeIDs() {
		a, ok := answers[id]
		if !ok {
			continue
		}
		out = append(out, a.Report)
		for _, x := range a.Report.Certs {
			rows = append(rows, []string{s.Name(id), x.Use, short(x.Issuer), x.NotAfter.Format(time.RFC3339), x.Due.Format(time.RFC3339), strings.Join(x.Hosts, " ")})
		}
	}
	if err := emit(c, out, func(w io.Writer) {
		grid(w, "", []string{"Node", "Certificate", "CA", "Valid until", "Renewed at", "Names"}, rows, -1)
	}); err != nil {
		return err
	}
	if some {
		return fmt.Errorf("%s: not all nodes answered: %w", c.Command.Name, gone)
	}
	return refusedFiles(c, s, answers)
}

// refusedFiles tells of files that the operator brought and that are not in use.
func refusedFiles(c *cli.Context, s *fsm.State, answers map[fsm.NodeID]admin.KeysAnswer) error {
	var errs []error
	for _, id := range s.NodeIDs() {
		if why := answers[id].Report.Refused; why != "" {
			errs = append(errs, fmt.Errorf("%s: %s: %s", c.Command.Name, s.Name(id), why))
		}
	}
	return errors.Join(errs...)
}

// short is enough of a fingerprint to tell CAs apart.
func short(fingerprint string) string {
	if fingerprint == "" {
		return "unknown"
	}
	return strings.TrimPrefix(fingerprint, "sha256:")[:12]
}

func (p *program) passwordRotate(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	cl, err := p.connect(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	answers, s, err := everyNode(c, cl, admin.KeysRequest{Do: admin.KeysShow})
	if err != nil {
		return fmt.Errorf("password rotate refused: every node has to take part: %w", err)
	}
	if s.Cluster.Settings.PostgresTLS.Or() == fsm.LinksOff {
		return errors.New("password rotate refused: with postgresql_tls off, links log in with the password and would fail in between: first 'matriarch config set postgresql_tls=both'")
	}
	if err := p.confirm(c, "yes", "The passwords of the superuser and of the replication user are replaced in every group."); err != nil {
		return err
	}
	secrets := map[string]string{identity.Superuser: newPassword(), identity.Replication: newPassword()}
	for id, a := range answers {
		if a.Staged { // a rotation was interrupted: some server may know its passwords already
			h, err := cl.Keys(c.Context, s.Nodes[id], admin.KeysRequest{Do: admin.KeysHand})
			if err != nil {
				return fmt.Errorf("password rotate: %w", err)
			}
			secrets = h.Secrets
			break
		}
	}
	if _, _, err := everyNode(c, cl, admin.KeysRequest{Do: admin.KeysStage, Secrets: secrets}); err != nil {
		return fmt.Errorf("password rotate stopped, the old passwords are in force: %w: run it again", err)
	}
	if err := setOnPrimaries(c, cl); err != nil {
		return err
	}
	if _, _, err := everyNode(c, cl, admin.KeysRequest{Do: admin.KeysCommit}); err != nil {
		return fmt.Errorf("password rotate stopped, nodes know the old and the new passwords: %w: run it again", err)
	}
	return done(c, "new passwords are in force")
}

func setOnPrimaries(c *cli.Context, cl cluster) error {
	st, err := cl.Formation(c.Context)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(slices.Values(st.State.GroupIDs())) {
		n, ok := st.State.Primary(id)
		if !ok {
			return fmt.Errorf("password rotate stopped, nodes know the old and the new passwords: group %d has no primary: run it again when it has", id)
		}
		if _, err := cl.Keys(c.Context, n, admin.KeysRequest{Do: admin.KeysSet}); err != nil {
			return fmt.Errorf("password rotate stopped, nodes know the old and the new passwords: %w: run it again", err)
		}
	}
	return nil
}
