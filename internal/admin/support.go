package admin

import (
	"context"
	"fmt"
	"time"

	"matriarch/fsm"
)

// CallSupport asks a node for what it would put into a support bundle about its host.
const CallSupport = "support"

// SupportFiles are texts by file name, without secrets.
type SupportFiles struct {
	Files map[string]string `json:"files"`
}

const supportTimeout = 40 * time.Second

// Support asks one node for the files about its host.
func (c *Client) Support(ctx context.Context, n fsm.Node) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, supportTimeout)
	defer cancel()
	var out SupportFiles
	if err := c.rpc.Call(ctx, n.Peer, string(n.ID), CallSupport, struct{}{}, &out); err != nil {
		return nil, fmt.Errorf("ask %s for its files: %w; run 'matriarch support-bundle --local' there", n.Name, err)
	}
	return out.Files, nil
}
