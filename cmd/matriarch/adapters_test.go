package main

import "testing"

// The terms of a restored control plane begin anew, and what they are written into remembers those before.
func TestProvenTermsRise(t *testing.T) {
	rising := []uint64{provenTerm(0, 1), provenTerm(1, 2), provenTerm(1, 900), provenTerm(2, 1), provenTerm(2, 2), provenTerm(3, 1)}
	for i := 1; i < len(rising); i++ {
		if rising[i] <= rising[i-1] {
			t.Errorf("number %d is %d after %d: want it to be higher", i, rising[i], rising[i-1])
		}
	}
	if got := provenTerm(1, 9); got != 9 {
		t.Errorf("the first incarnation's term 9 is %d: want it to be Raft's, which older versions write", got)
	}
}
