package instance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"matriarch/pgmanager/fence"
)

// asSentinel has this program, started once more, be a sentinel on the socket named.
const asSentinel = "MATRIARCH_TEST_SENTINEL"

func TestMain(m *testing.M) {
	if socket := os.Getenv(asSentinel); socket != "" {
		if err := fence.Run(context.Background(), fence.Config{Socket: socket}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestResetIsNoTakeover: while another sentinel is started the loop asks on. Both make a connection, and the agent must not take
// its own for another agent's, for which it would end.
func TestResetIsNoTakeover(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	s := &Sentinel{
		cfg: SentinelConfig{
			Spawn: fence.SpawnConfig{
				Executable: self, Args: []string{"sentinel", socket}, Env: append(os.Environ(), asSentinel+"="+socket),
				LogFile: filepath.Join(dir, "log"), Socket: socket,
			},
			DataDir: filepath.Join(dir, "data"),
		},
		events: make(chan struct{}, 1), taken: make(chan struct{}),
	}
	if err := fence.Spawn(t.Context(), s.cfg.Spawn); err != nil {
		t.Fatal(err)
	}
	if err := s.dial(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killSentinel(s.Status().SentinelPID, socket) })
	ctx, stop := context.WithCancel(t.Context())
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for ctx.Err() == nil {
			_, _ = s.Ping(ctx)
			time.Sleep(time.Millisecond)
		}
	}()
	for range 20 {
		if err := s.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	<-asked
	select {
	case <-s.Taken():
		t.Error("the agent takes itself for another one")
	default:
	}
	if _, err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}
