#!/bin/sh
# Before the files go. A running node would be left without its program, and its PostgreSQL without a manager at the next start.
set -e

case "$1" in
  remove | 0) ;;
  *) exit 0 ;; # upgrade
esac

if [ -d /run/systemd/system ] && systemctl is-active --quiet matriarch; then
  echo "matriarch: this node runs: take it out first ('matriarch leave' or 'systemctl disable --now matriarch'), then remove the package. Nothing was changed" >&2
  exit 1
fi
