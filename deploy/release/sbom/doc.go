// Command sbom prints the bill of materials of a built program in CycloneDX 1.5: sbom -version V FILE.
//
// deploy/release/release.sh calls it. What is listed is what the linker took, as the program itself says it: no file of the module is asked.
//
// Invariants: the same program gives the same bytes (no time, no random serial number).
//
// It must never need the network.
package main
