// Package packages holds what the .deb and .rpm are made of, and the test that installs and removes them. `make packages` builds them,
// `make packages-test` tests them.
//
// Invariants: installing, upgrading and removing starts and stops nothing; removing leaves configuration, state and data; matriarch.yml never
// changes between versions, so that no upgrade asks about it.
package packages
