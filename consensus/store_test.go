package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

func reopen(t interface{ Fatal(...any) }, s *store, dir string) *store {
	if s != nil {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func readVote(t interface{ Fatal(...any) }, s *store) (uint64, string) {
	term, err := s.GetUint64(keyVoteTerm)
	if err != nil && err.Error() != "not found" {
		t.Fatal(err)
	}
	cand, err := s.Get(keyVoteCand)
	if err != nil && err.Error() != "not found" {
		t.Fatal(err)
	}
	return term, string(cand)
}

// A crash at any point of any sequence of votes leaves the last whole vote.
func TestVoteIsWrittenWhole(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		s := reopen(rt, nil, dir)
		defer func() { _ = s.Close() }()
		var wantTerm uint64
		var wantCand string
		for term := uint64(1); term < 8; term++ {
			cand := rapid.StringMatching("[a-c]{1,3}").Draw(rt, "candidate")
			if err := s.SetUint64(keyVoteTerm, term); err != nil {
				rt.Fatal(err)
			}
			if rapid.Bool().Draw(rt, "crash between") {
				s = reopen(rt, s, dir)
			} else {
				if err := s.Set(keyVoteCand, []byte(cand)); err != nil {
					rt.Fatal(err)
				}
				wantTerm, wantCand = term, cand
			}
			if gotTerm, gotCand := readVote(rt, s); gotTerm != wantTerm || gotCand != wantCand {
				rt.Fatalf("vote is (%d, %q), want (%d, %q)", gotTerm, gotCand, wantTerm, wantCand)
			}
		}
	})
}

// Term and candidate are one key of one transaction: the file has nothing else of the vote.
func TestVoteIsOneKey(t *testing.T) {
	s := reopen(t, nil, t.TempDir())
	defer s.Close()
	if err := s.SetUint64(keyVoteTerm, 7); err != nil {
		t.Fatal(err)
	}
	for _, k := range [][]byte{keyVote, keyVoteTerm} {
		if _, err := s.BoltStore.Get(k); err == nil {
			t.Errorf("key %s is written before the candidate is known", k)
		}
	}
	if err := s.Set(keyVoteCand, []byte("b")); err != nil {
		t.Fatal(err)
	}
	got, err := s.BoltStore.Get(keyVote)
	if want := append(binary.BigEndian.AppendUint64(nil, 7), 'b'); err != nil || !bytes.Equal(got, want) {
		t.Errorf("stored vote %v, %v, want %v", got, err, want)
	}
	if _, err := s.BoltStore.Get(keyVoteCand); err == nil {
		t.Error("the candidate has a key of its own")
	}
}

func TestOpenStoreErrors(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, nil, dir)
	defer s.Close()
	if _, err := openStore(dir); err == nil || !strings.Contains(err.Error(), "another matriarch runs on this folder") {
		t.Errorf("opened twice: %v", err)
	}
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(file + "/sub"); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("folder below a file: %v", err)
	}
	for err, remedy := range map[error]string{
		&os.PathError{Op: "open", Path: "x", Err: syscall.ENOSPC}: "free some space",
		&os.PathError{Op: "open", Path: "x", Err: syscall.EACCES}: "must be writable",
	} {
		if got := storeError("/d", err).Error(); !strings.Contains(got, remedy) || !strings.Contains(got, "/d") {
			t.Errorf("%v: %s", err, got)
		}
	}
}

func TestGuardVoidsOtherTerms(t *testing.T) {
	e := entry([]byte("x"), 5)
	e.Term = 6
	if got, _ := (guard{}).Apply(&e).(error); !errors.Is(got, errVoid) { // a nil machine would panic: it is not reached
		t.Errorf("entry decided in term 5, appended in term 6: %v", got)
	}
	l := raft.Log{Data: []byte("x"), Extensions: []byte("of somebody else")}
	defer func() {
		if recover() == nil {
			t.Error("an entry without a term must reach the machine")
		}
	}()
	(guard{}).Apply(&l)
}
