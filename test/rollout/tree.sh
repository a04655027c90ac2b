#!/bin/bash
# Builds the file tree that container hosts are overlays of, once for each recipe, and prints its path.
#
#   tree.sh bookworm|trixie
#
# Trees live in $MATRIARCH_ROLLOUT_CACHE (default /var/cache/matriarch-rollout), named by a hash of what they are made from; older ones of
# the same kind are removed.
set -euo pipefail
umask 022

suite=$1
case $suite in
bookworm) major=15 ;;
trixie) major=17 ;;
*) echo "tree: no recipe for $suite" >&2; exit 2 ;;
esac
packages=systemd,systemd-sysv,dbus,openssh-server,python3,python3-apt,sudo,iproute2,ca-certificates,procps,postgresql-$major
cache=${MATRIARCH_ROLLOUT_CACHE:-/var/cache/matriarch-rollout}
hash=$(cat "$0" <(echo "$suite $packages") | sha256sum | cut -c1-12)
tree=$cache/$suite-$hash

mirror() {
  local found
  found=$(grep -hm1 -oP '^(URIs: |deb )\s*\Khttps?://\S+' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1) || true
  echo "${found:-http://deb.debian.org/debian}"
}

if [ ! -d "$tree" ]; then
  mkdir -p "$cache"
  find "$cache" -maxdepth 1 -name "$suite-*" ! -name "*.lock" -exec rm -rf --one-file-system {} +
  # Root's own mount namespace keeps what apt mounts in the tree out of the machine's.
  unshare -m --propagation private nice -n 10 mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
    --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$tree.new" "$(mirror)" >&2
  rm -f "$tree.new"/etc/ssh/ssh_host_*
  : >"$tree.new/etc/machine-id" # each host makes its own
  mv "$tree.new" "$tree"
fi
echo "$tree"
