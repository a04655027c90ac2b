#!/bin/sh
# After the files are gone. State, data directories and configuration stay, whatever is asked: they may hold the only copy of a write.
set -e

if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || :
fi
case "$1" in
  remove | purge | 0)
    if [ -d /var/lib/matriarch ]; then
      echo "matriarch: /var/lib/matriarch stays, with what is in it: the data of PostgreSQL and this node's keys" >&2
    fi
    ;;
esac
