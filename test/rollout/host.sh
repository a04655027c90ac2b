#!/bin/bash
# Boots one container host and stays until it has been shut down: a systemd machine of its own on an overlay of a tree.
#
#   host.sh NAME TREE DIR CGROUP
#
# The network namespace NAME exists; DIR holds the overlay; everything that runs here is in CGROUP, by which a power cut ends it. Mounts
# are the sandbox's and go with it.
set -euo pipefail
name=$1 tree=$2 dir=$3 cgroup=$4

mkdir -p "$cgroup" "$dir"/{up,work,root}
echo $$ >"$cgroup/cgroup.procs"
mountpoint -q "$dir/root" || mount -t overlay overlay -o "lowerdir=$tree,upperdir=$dir/up,workdir=$dir/work" "$dir/root"
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
while :; do
  rc=0
  systemd-nspawn -q -D "$dir/root" --boot --register=no --keep-unit --machine="$name" --network-namespace-path="/run/netns/$name" \
    --link-journal=no --resolv-conf=off --timezone=off --console=pipe --system-call-filter=@keyring \
    --capability=CAP_SYS_PTRACE,CAP_SYS_RESOURCE,CAP_IPC_LOCK,CAP_NET_ADMIN,CAP_NET_RAW || rc=$?
  [ "$rc" = 133 ] || exit "$rc" # 133: it asked for a reboot
done
