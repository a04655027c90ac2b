package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"matriarch/fsm"
)

// self is what a node says of its own processes and lease.
type self struct {
	Postmaster int       `json:"postmaster"`
	Epoch      fsm.Epoch `json:"epoch"`
	Writable   bool      `json:"writable"`
	Processes  struct {
		Agent int `json:"agent"`
	} `json:"processes"`
}

func (b *bed) self(ctx context.Context, h *host) (self, error) {
	var st struct {
		Self self `json:"self"`
	}
	out, err := h.ssh(ctx, "matriarch --output json status "+h.name)
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	return st.Self, err
}

// served is how a node serves: neither may change where nothing is to be noticed.
func (s self) served() string {
	return fmt.Sprintf("postmaster %d, epoch %s, writable %t", s.Postmaster, s.Epoch, s.Writable)
}

// untouched does something during which no process of any node may end, and no lease.
func (s *scene) untouched(ctx context.Context, do func() error) error {
	look := func() (map[string]self, error) {
		all := map[string]self{}
		for _, h := range s.nodes {
			now, err := s.self(ctx, h)
			if err != nil {
				return nil, err
			}
			all[h.name] = now
		}
		return all, nil
	}
	before, err := look()
	if err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	after, err := look()
	if err == nil && !maps.Equal(before, after) {
		err = fmt.Errorf("a process or a lease changed: %v, and was %v", after, before)
	}
	return err
}

// certificate is what tells one issue from another.
type certificate struct {
	Fingerprint string `json:"fingerprint"`
	Issuer      string `json:"issuer"`
}

// certificates are those of all nodes, by node and use.
func (b *bed) certificates(ctx context.Context, from *host) (map[string]certificate, error) {
	var nodes []struct {
		Node    string `json:"node"`
		Signing string `json:"signing"`
		Old     string `json:"old"`
		Certs   []struct {
			Use string `json:"use"`
			certificate
		} `json:"certificates"`
	}
	out, err := from.ssh(ctx, "matriarch --output json certificates show")
	if err == nil {
		err = json.Unmarshal([]byte(out), &nodes)
	}
	all := map[string]certificate{}
	for _, n := range nodes {
		if n.Old != "" {
			err = errors.Join(err, fmt.Errorf("%s still trusts the CA before", n.Node))
		}
		for _, c := range n.Certs {
			if c.Issuer != n.Signing {
				err = errors.Join(err, fmt.Errorf("%s: the certificate for %s is of another CA", n.Node, c.Use))
			}
			all[n.Node+" "+c.Use] = c.certificate
		}
	}
	return all, err
}

// rotate issues all certificates anew, then replaces the CA. Nobody notices: no process ends, no lease, no write.
func (s *scene) rotate(ctx context.Context) (string, error) {
	before, err := s.certificates(ctx, s.nodes[0])
	if err != nil {
		return "", err
	}
	_, failed, says, err := s.measured(ctx, func() error {
		for _, args := range [][]string{nil, {"-e", "matriarch_rotate_ca=true"}} {
			err := s.untouched(ctx, func() error {
				_, err := s.plain(ctx, s.inv, "rotate-certificates", args...)
				return err
			})
			if err != nil {
				return err
			}
			now, err := s.certificates(ctx, s.nodes[0])
			if err != nil {
				return err
			}
			if len(now) != 4*len(s.nodes) {
				return fmt.Errorf("want four certificates of each node, not %d of all", len(now))
			}
			for what, c := range now {
				if c.Fingerprint == before[what].Fingerprint || (c.Issuer == before[what].Issuer) != (args == nil) {
					return fmt.Errorf("%s is %v, and was %v", what, c, before[what])
				}
			}
			before = now
		}
		return s.healthy(ctx, s.nodes[0])
	})
	if err == nil && failed > 0 {
		err = errors.New(says)
	}
	return fmt.Sprintf("%d certificates anew, twice, the second time of another CA; %s", len(before), says), err
}
