#!/bin/sh
# After the files are in place. Starts and stops nothing: this host may hold a primary.
set -e

upgrade=
case "$1" in
  configure) [ -z "$2" ] || upgrade=yes ;; # dpkg: the version before
  abort-*) exit 0 ;;
  1) ;;
  *) upgrade=yes ;; # rpm: how many will be installed
esac

if command -v systemd-sysusers >/dev/null; then
  systemd-sysusers matriarch.conf || echo "matriarch: the user postgres could not be made: the package of PostgreSQL will make it" >&2
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || :
fi

if [ -n "$upgrade" ]; then
  echo "matriarch: the running node goes on with the old program until 'systemctl restart matriarch'; PostgreSQL stays up meanwhile"
else
  echo "matriarch: next 'matriarch doctor', then 'matriarch bootstrap' or 'matriarch join', then 'systemctl enable --now matriarch'"
fi
