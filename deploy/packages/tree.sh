#!/bin/bash
# Makes a small Debian tree to install packages in: tree.sh DIRECTORY. Needs root and Debian's package mirror.
set -euo pipefail
dir=$(realpath -m "$1")
[ "$(id -u)" = 0 ] || { echo "tree: run this as root" >&2; exit 1; }
command -v mmdebstrap >/dev/null && command -v rpm >/dev/null || {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap rpm >/dev/null
}
mirror=$(grep -hoPm1 '^(URIs: |deb (\[.*\] )?)\Khttps?://\S+' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1) || true
mkdir -p "$(dirname "$dir")"
rm -rf "$dir.new"
mmdebstrap --quiet --variant=minbase --include=systemd,man-db --aptopt='Acquire::Check-Valid-Until "false"' bookworm "$dir.new" "${mirror:-http://deb.debian.org/debian}"
mv "$dir.new" "$dir"
