// Package pgtest says which PostgreSQL the tests run.
//
// Called by: the tests of pgmanager and of its folders, and internal/testkit. It is a leaf, so that all of them can import it;
// product code must never do so.
package pgtest
