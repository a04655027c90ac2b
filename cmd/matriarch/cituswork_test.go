package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/citus"
	"matriarch/internal/admin"
)

// TestInEachTellsOfANewLeader: one database's answer, too, says in words why its session ended.
func TestInEachTellsOfANewLeader(t *testing.T) {
	out := inEach([]citus.Wanted{{Database: "app"}, {Database: "other"}}, func(w citus.Wanted, _ *admin.CitusAnswer) error {
		if w.Database == "other" {
			return nil
		}
		return fmt.Errorf("drain: %w", &pgconn.PgError{Code: adminShutdown, Message: "terminating connection"})
	})
	if len(out) != 2 || !strings.Contains(out[0].Error, "the Raft leader changed meanwhile") || out[1].Error != "" {
		t.Errorf("%+v", out)
	}
}
