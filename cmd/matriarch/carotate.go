package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/transport"
)

func (p *program) caRotate(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	if c.Bool("force") && c.Bool("abandon") {
		return usagef(c, "--abandon needs all nodes: not with --force")
	}
	cl, err := p.connect(c)
	if err != nil {
		return err
	}
	defer func() { cl.Close() }()
	answers, s, err := p.present(c, cl)
	if err != nil {
		return err
	}
	if c.Bool("abandon") {
		return p.caAbandon(c, cl, s, answers)
	}
	if err := p.confirm(c, "yes", fmt.Sprintf("The CA of cluster %s is replaced on %d nodes; join tokens made so far become worthless.", s.Cluster.ID, len(answers))); err != nil {
		return err
	}
	ca, cert, key, err := nextCA(c, cl, s, answers)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		text string
		r    admin.KeysRequest
	}{
		{"trusts the new CA too", admin.KeysRequest{Do: admin.KeysTrust, Cert: cert, Key: key}},
		{"shows certificates of the new CA", admin.KeysRequest{Do: admin.KeysSign, CA: ca}},
		{"trusts the new CA only", admin.KeysRequest{Do: admin.KeysDrop, CA: ca}},
	} {
		if err := rotateStep(c, cl, step.text, step.r); err != nil {
			return err
		}
		// This host's certificates changed with the node's: connections made from now on need the new ones.
		cl.Close()
		if cl, err = p.connect(c); err != nil {
			return err
		}
	}
	return finished(c, cl, ca)
}

// rotateStep has every node take one step. One that does not answer stops the rotation, but for --force; one that refuses always does: it
// is there, and would be shut out by the next.
func rotateStep(c *cli.Context, cl cluster, text string, r admin.KeysRequest) error {
	answers, _, err := everyNode(c, cl, r)
	for _, a := range answers {
		fmt.Fprintf(c.App.ErrWriter, "%s %s\n", a.Report.Node, text)
	}
	missing, some := errors.AsType[away](err)
	if err == nil || some && c.Bool("force") && !missing.refused() {
		return nil
	}
	return fmt.Errorf("ca rotate stopped before the next step, nothing is broken: %w: run it again when all nodes answer, or with --force, after which those have to join again", err)
}

// refused reports whether one of the nodes is there, and says no.
func (a away) refused() bool {
	for _, err := range a {
		if _, said := errors.AsType[*transport.Error](err); said {
			return true
		}
	}
	return false
}

// finished looks once more: a node may have joined in between.
func finished(c *cli.Context, cl cluster, ca string) error {
	answers, s, err := everyNode(c, cl, admin.KeysRequest{Do: admin.KeysShow})
	if _, some := errors.AsType[away](err); err != nil && (!some || !c.Bool("force")) {
		return fmt.Errorf("ca rotate: the CA is %s, but not all nodes could be asked at the end: %w: run it again", ca, err)
	}
	for _, id := range s.NodeIDs() {
		if a, ok := answers[id]; ok && (a.Report.Signing != ca || a.Report.Next != "" || a.Report.Old != "" || !a.Report.Signed()) {
			return fmt.Errorf("ca rotate: %s was not there for all steps: run it again", s.Name(id))
		}
	}
	return done(c, "the CA is %s", ca)
}

// caAbandon takes the first step of a rotation back.
func (p *program) caAbandon(c *cli.Context, cl cluster, s *fsm.State, answers map[fsm.NodeID]admin.KeysAnswer) error {
	staged, signing := map[string]bool{}, map[string]bool{}
	for _, id := range s.NodeIDs() {
		r := answers[id].Report
		signing[r.Signing] = true
		if r.Old != "" || len(signing) > 1 {
			return fmt.Errorf("ca rotate --abandon refused: %s shows certificates of the new CA, or did: only forward is possible, with 'matriarch ca rotate'", s.Name(id))
		}
		if r.Next != "" {
			staged[r.Next] = true
		}
	}
	if len(staged) == 0 {
		return done(c, "no replacement of the CA is under way")
	}
	if err := p.confirm(c, "yes", "The replacement of the CA that was begun is forgotten. Nobody else may be at it."); err != nil {
		return err
	}
	for ca := range staged {
		if _, _, err := everyNode(c, cl, admin.KeysRequest{Do: admin.KeysForget, CA: ca}); err != nil {
			return fmt.Errorf("ca rotate --abandon stopped, nothing is broken: %w: run it again", err)
		}
	}
	return done(c, "the replacement of the CA is forgotten")
}

// present is what all nodes show; with --force those that answer will do.
func (p *program) present(c *cli.Context, cl cluster) (map[fsm.NodeID]admin.KeysAnswer, *fsm.State, error) {
	answers, s, err := everyNode(c, cl, admin.KeysRequest{Do: admin.KeysShow})
	if _, some := errors.AsType[away](err); err != nil && (!some || !c.Bool("force")) {
		return nil, nil, fmt.Errorf("ca rotate refused: every node has to take part: %w: bring it back or remove it, or use --force, after which it has to join again", err)
	}
	return answers, s, nil
}

// nextCA is the CA to go to: the one of a rotation under way, or a new one.
func nextCA(c *cli.Context, cl cluster, s *fsm.State, answers map[fsm.NodeID]admin.KeysAnswer) (fingerprint string, cert, key []byte, err error) {
	signing := map[string]bool{}
	var has fsm.NodeID // a node that has come furthest
	for _, id := range s.NodeIDs() {
		a, ok := answers[id]
		if !ok {
			continue
		}
		signing[a.Report.Signing] = true
		switch {
		case a.Report.Old != "":
			has, fingerprint = id, a.Report.Signing
		case a.Report.Next != "" && has == "":
			has, fingerprint = id, a.Report.Next
		}
	}
	if has != "" {
		h, err := cl.Keys(c.Context, s.Nodes[has], admin.KeysRequest{Do: admin.KeysHand, CA: fingerprint})
		return fingerprint, h.Cert, h.Key, err
	}
	if len(signing) > 1 {
		return "", nil, nil, errors.New("ca rotate refused: nodes disagree about the CA and no rotation is under way: see 'matriarch certificates show'; those that were away have to join again")
	}
	ca, err := transport.NewCA(cl.Self().ClusterID, time.Now())
	if err != nil {
		return "", nil, nil, fmt.Errorf("ca rotate: %w", err)
	}
	if key, err = ca.KeyPEM(); err != nil {
		return "", nil, nil, fmt.Errorf("ca rotate: %w", err)
	}
	return ca.Fingerprint(), ca.CertPEM(), key, nil
}
