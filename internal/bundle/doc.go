// Package bundle packs what somebody needs who helps from afar into one archive, without secrets.
//
// cmd adds the files; everything goes through one Writer, which takes secrets out of every byte by the same rules.
//
// Invariants: nothing enters the archive but through Redactor; a secret that the Redactor was given never appears, nor does what looks like one
// (passwords in SQL, in connection strings and URLs, keys, tokens, password hashes); text that has no secret is unchanged.
//
// It must never read a file by itself, so that no file enters without being named by the caller.
package bundle
