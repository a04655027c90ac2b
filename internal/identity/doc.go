// Package identity is who this node is, on disk: identifiers, certificate, keys, generated passwords and last known peers.
//
// bootstrap, join and recover write it; run reads it to open its port; the command line reads it to call the nodes. It names every
// file below the state directory once, so that nobody else spells a path.
//
// Invariants: every file appears whole or not at all and survives a power cut; secrets and keys are mode 0600 in directories of
// mode 0700. Identity is written last, so that a state directory with an identity.json is complete.
//
// The package must never print or log what it reads, and never draw an identity of its own accord.
package identity
