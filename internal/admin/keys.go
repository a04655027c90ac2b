package admin

import (
	"context"
	"fmt"
	"time"

	"matriarch/fsm"
	"matriarch/internal/certificates"
)

// What a KeysRequest asks for.
const (
	KeysShow   = "show"   // describe
	KeysRenew  = "renew"  // issue every certificate anew
	KeysTrust  = "trust"  // Cert and Key: trust this CA too
	KeysSign   = "sign"   // CA: it signs from now on
	KeysDrop   = "drop"   // CA: trust no other
	KeysForget = "forget" // CA: trust it no more; it must not sign yet
	KeysHand   = "hand"   // give certificate and key of CA, or without one the staged passwords
	KeysStage  = "stage"  // Secrets: know these passwords too
	KeysSet    = "set"    // a primary gives its roles the staged passwords
	KeysCommit = "commit" // the staged passwords are in force
)

// KeysRequest asks one node. It may hold secrets: they travel in mutual TLS between members, and are never logged.
type KeysRequest struct {
	Do      string            `json:"do"`
	CA      string            `json:"ca,omitempty"` // fingerprint
	Cert    []byte            `json:"cert,omitempty"`
	Key     []byte            `json:"key,omitempty"`
	Secrets map[string]string `json:"secrets,omitempty"`
}

// String leaves out the secrets.
func (r KeysRequest) String() string { return "keys: " + r.Do }

// KeysAnswer is what the node answers; secrets only to KeysHand.
type KeysAnswer struct {
	Report certificates.Report `json:"report"`
	Staged bool                `json:"staged,omitempty"` // passwords wait to be put in force
	Cert   []byte              `json:"cert,omitempty"`
	Key    []byte              `json:"key,omitempty"`

	Secrets map[string]string `json:"secrets,omitempty"`
}

// String leaves out the secrets.
func (a KeysAnswer) String() string { return "keys of " + a.Report.Node }

const keysTimeout = 20 * time.Second

// Keys asks one node.
func (c *Client) Keys(ctx context.Context, n fsm.Node, r KeysRequest) (KeysAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	var a KeysAnswer
	if err := c.rpc.Call(ctx, n.Peer, string(n.ID), CallKeys, r, &a); err != nil {
		return a, fmt.Errorf("%s: %w", n.Name, err)
	}
	return a, nil
}
