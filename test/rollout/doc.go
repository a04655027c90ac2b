// Command rollout tries what operators do, on machines that look like theirs: systemd hosts in containers, behind a switch of their own,
// reached by ssh and Ansible.
//
// Called by: make rollout, and .ci/run in the reduced form. It needs root, systemd-nspawn, mmdebstrap and Ansible (deploy/deps-rollout.sh).
//
// tree.sh builds the file trees, host.sh boots one host on an overlay of one. Everything runs in namespaces of networks, mounts and processes
// (sandbox.go), which end with the program; cgroups and overlays are removed after that. Steps are in steps.go, one function each.
//
// It must never touch the machine's own services, network or files outside its cache, its work directory and -out.
package main
