package main

import (
	"context"
	"errors"

	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/pgmanager"
)

// adoptExisting makes an existing data directory fit to be run by this node.
func adoptExisting(context.Context, config.Config, identity.Dir, pgmanager.Tools) error {
	return errors.New("adopt: no such directory can be adopted")
}
