package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

const (
	storeFile    = "raft.db"
	lockWait     = time.Second
	keepSnapshot = 2
)

// ErrRunning says that the folder is in use.
var ErrRunning = errors.New("another matriarch runs on this folder: stop it first")

// The keys by which the Raft library keeps what must survive.
var (
	keyCurrentTerm = []byte("CurrentTerm")
	keyVoteTerm    = []byte("LastVoteTerm")
	keyVoteCand    = []byte("LastVoteCand")
	keyVote        = []byte("Vote") // ours: term and candidate in one value
)

// store is the log and the stable store, in one file.
//
// The library writes a vote by two calls, first the term, then the candidate. A crash between them would leave a term with an
// older candidate, to whom the vote could be granted again without a look at its log. Hence the term is held back and written
// with the candidate as one key.
type store struct {
	*raftboltdb.BoltStore
	write func([]*raft.Log) error // to the log; tests put a slow disk in between
	busy  busy

	written written

	heldTerm uint64 // of a vote whose candidate has not come yet; Raft's one goroutine writes it
	// fatal, once set, is told that the term or vote could not be written, and ends the calling goroutine, which is Raft's main
	// one: the library would panic, and a node that cannot keep its promises must not go on.
	fatal atomic.Pointer[func(error)]
}

func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, storeError(dir, err)
	}
	b, err := openBolt(dir, false)
	if err != nil {
		return nil, err
	}
	return newStore(b), nil
}

func newStore(b *raftboltdb.BoltStore) *store { return &store{BoltStore: b, write: b.StoreLogs} }

func openBolt(dir string, readOnly bool) (*raftboltdb.BoltStore, error) {
	b, err := raftboltdb.New(raftboltdb.Options{
		Path:                    filepath.Join(dir, storeFile),
		BoltOptions:             &bbolt.Options{Timeout: lockWait, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, ReadOnly: readOnly},
		MsgpackUseNewTimeFormat: true,
	})
	if err != nil {
		return nil, storeError(dir, err)
	}
	return b, nil
}

// storeError names the remedy.
func storeError(dir string, err error) error {
	remedy := ""
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("open Raft store in %s: %w", dir, ErrRunning)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		remedy = ": free some space there"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		remedy = ": the folder must be writable for this user"
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		remedy = ": the file is damaged: remove this node, empty its state folder and join again"
	}
	return fmt.Errorf("open Raft store in %s: %w%s", dir, err, remedy)
}

// StoreLog implements raft.LogStore.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s *store) StoreLogs(logs []*raft.Log) error {
	defer s.busy.begin()()
	err := s.write(logs)
	if err == nil && len(logs) > 0 {
		s.written.last.Store(logs[len(logs)-1].Index)
	}
	s.written.more.fire()
	return err
}

// SetUint64 implements raft.StableStore.
func (s *store) SetUint64(key []byte, v uint64) error {
	if string(key) == string(keyVoteTerm) {
		s.heldTerm = v
		return nil
	}
	defer s.busy.begin()()
	return s.must(s.BoltStore.SetUint64(key, v))
}

// Set implements raft.StableStore.
func (s *store) Set(key, val []byte) error {
	defer s.busy.begin()()
	if string(key) == string(keyVoteCand) {
		return s.must(s.BoltStore.Set(keyVote, append(binary.BigEndian.AppendUint64(nil, s.heldTerm), val...)))
	}
	return s.must(s.BoltStore.Set(key, val))
}

// GetUint64 implements raft.StableStore.
func (s *store) GetUint64(key []byte) (uint64, error) {
	if string(key) != string(keyVoteTerm) {
		return s.BoltStore.GetUint64(key)
	}
	term, _, err := s.vote()
	return term, err
}

// Get implements raft.StableStore.
func (s *store) Get(key []byte) ([]byte, error) {
	if string(key) != string(keyVoteCand) {
		return s.BoltStore.Get(key)
	}
	_, candidate, err := s.vote()
	return candidate, err
}

func (s *store) vote() (term uint64, candidate []byte, err error) {
	v, err := s.BoltStore.Get(keyVote)
	if err != nil {
		return 0, nil, err // "not found" must reach the library as it is
	}
	if len(v) < 8 {
		return 0, nil, errors.New("the stored vote is damaged")
	}
	return binary.BigEndian.Uint64(v), v[8:], nil
}

func (s *store) must(err error) error {
	if fatal := s.fatal.Load(); err != nil && fatal != nil {
		(*fatal)(fmt.Errorf("write Raft's term or vote: %w: a node that cannot write must not take part: check the disk of the state folder", err))
		runtime.Goexit()
	}
	return err
}

// written knows the end of the log on disk, as far as it was written by this process, and tells those who wait for more.
type written struct {
	last atomic.Uint64
	more signal
}

// busy knows how long the write under way has taken.
type busy struct{ since atomic.Pointer[time.Time] }

func (b *busy) begin() (end func()) {
	now := time.Now()
	b.since.Store(&now)
	return func() { b.since.Store(nil) }
}

// longer reports whether a write has been under way for more than d.
func (b *busy) longer(d time.Duration) bool {
	t := b.since.Load()
	return t != nil && time.Since(*t) > d
}
