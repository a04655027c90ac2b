#!/bin/bash
# Installs what `make bench PEER=patroni` compares with, from Debian, with its services masked: nothing may start by itself.
set -euo pipefail

say() { echo "peer: $*"; }

if command -v patroni >/dev/null && command -v etcd >/dev/null; then
  say "$(patroni --version), $(etcd --version | head -1)"
  exit 0
fi
[ "$(id -u)" = 0 ] || { say "run this as root, or install patroni, etcd-server and etcd-client yourself" >&2; exit 1; }
for unit in patroni etcd; do
  mkdir -p /etc/systemd/system
  [ -e "/etc/systemd/system/$unit.service" ] || ln -s /dev/null "/etc/systemd/system/$unit.service"
done
export DEBIAN_FRONTEND=noninteractive
say "installing patroni, etcd-server, etcd-client"
apt-get update -qq
apt-get install -y -qq --no-install-recommends patroni etcd-server etcd-client >/dev/null
say "$(patroni --version), $(etcd --version | head -1)"
