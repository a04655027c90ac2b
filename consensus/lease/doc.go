// Package lease is the arithmetic of primary leases: Lessor on the Raft leader, Holder on each node. Both take clock readings
// as inputs, so that they run under virtual time, and neither imports Raft.
//
// Called by: consensus (Lessor, inside the one goroutine that proposes everything about leases) and internal/agent (Holder).
//
// The argument, in short. A holder stamps s before it sends a keepalive; the answer, which is the result of a log entry
// appended after the keepalive was received, makes its lease valid until s + Valid(ttl). The leader moves the deadline to
// receipt + ttl when the keepalive enters the entry, and proposes Expire only behind it in the log. A new leader gives every
// lease a full ttl from its Barrier on. Hence an Expire that is applied was proposed at least ttl after every s whose answer
// reached the holder, whichever leaders were involved; clocks that run within Drift of each other do the rest.
//
// Failsafe prolongs a deadline by the words of all members of the group (Holder.Extend, Word): the same arithmetic, with the giver
// of a word in the place of the leader. The argument is in docs/adr/0027-failsafe.md.
//
// Invariants: a deadline only moves later; a fresh Grant is worth nothing until its first answered keepalive; the holder acts
// on the earlier, the leader on the later of the two clocks. State() == Leader and VerifyLeader are never a proof.
package lease
