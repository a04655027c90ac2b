#!/bin/bash
# Makes this machine able to build, test and demonstrate Matriarch: uses what is there, says what it installs, asks nothing.
#
#   MATRIARCH_PG_BIN   use the PostgreSQL server in this directory instead of looking for one
#
# On Debian and Ubuntu it installs what is missing (as root or through `sudo -n`). Elsewhere it says what is missing and fails.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly GO_MIN_MAJOR=1 GO_MIN_MINOR=26 PG_MIN=14 PG_MAX=18

say() { echo "deps: $*"; }
die() { echo "deps: $*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

can_be_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }

on_debian() {
  [ -r /etc/os-release ] && (. /etc/os-release && [[ " ${ID:-} ${ID_LIKE:-} " =~ \ (debian|ubuntu)\  ]])
}

check_go() {
  export PATH="$PATH:/usr/local/go/bin"
  local want="$GO_MIN_MAJOR.$GO_MIN_MINOR" version
  command -v go >/dev/null || die "Go is missing: install Go $want or later from https://go.dev/dl/ into /usr/local/go"
  # GOTOOLCHAIN=local: the toolchain that is here, not one that go.mod could have it download.
  version=$(cd / && GOTOOLCHAIN=local go env GOVERSION)
  [[ $version =~ ^go([0-9]+)\.([0-9]+) ]] || die "cannot read the version of $(command -v go): it says '$version'"
  if ((BASH_REMATCH[1] < GO_MIN_MAJOR || (BASH_REMATCH[1] == GO_MIN_MAJOR && BASH_REMATCH[2] < GO_MIN_MINOR))); then
    die "$(command -v go) is $version: install Go $want or later from https://go.dev/dl/"
  fi
  say "Go ${version#go} in $(dirname "$(command -v go)")"
}

pg_major() { # DIRECTORY: prints the server's major version when it is one that Matriarch knows
  local version
  [ -x "$1/postgres" ] && [ -x "$1/initdb" ] || return 1
  version=$("$1/postgres" --version | grep -oE '[0-9]+' | head -1) || return 1
  ((version >= PG_MIN && version <= PG_MAX)) && echo "$version"
}

# The newest known server, from the places where the manager itself looks.
find_postgres() {
  local dir version newest=0 found=
  if [ -n "${MATRIARCH_PG_BIN:-}" ]; then
    pg_major "$MATRIARCH_PG_BIN" >/dev/null || die "MATRIARCH_PG_BIN=$MATRIARCH_PG_BIN holds no PostgreSQL server of version $PG_MIN to $PG_MAX"
    echo "$MATRIARCH_PG_BIN"
    return
  fi
  for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin "$(dirname "$(command -v postgres || echo /none/postgres)")"; do
    if version=$(pg_major "$dir") && ((version > newest)); then
      newest=$version found=$dir
    fi
  done
  [ -n "$found" ] && echo "$found"
}

# What an extension is built with: Debian ships the rules with the client, the headers with the development package.
has_build_files() {
  [ -x "$1/pg_config" ] && [ -f "$("$1/pg_config" --pgxs)" ] && [ -f "$("$1/pg_config" --includedir-server)/postgres.h" ]
}

# Tools for root are not in everybody's PATH.
has_tool() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

# Fills MISSING (for people) and PACKAGES (for apt) with what is not here.
find_missing() {
  MISSING=() PACKAGES=()
  need() { MISSING+=("$1") PACKAGES+=("${@:2}"); }

  command -v gcc >/dev/null && command -v make >/dev/null || need "a C compiler and make" build-essential
  has_tool ip || need "ip (iproute2)" iproute2
  # What 'make chaos' builds and breaks hosts with.
  has_tool nft || need "nft (nftables)" nftables
  has_tool iptables || need "iptables" iptables
  has_tool mkfs.ext4 || need "mkfs.ext4 (e2fsprogs)" e2fsprogs
  has_tool unshare && has_tool nsenter || need "unshare and nsenter (util-linux)" util-linux
  has_tool mount || need "mount" mount
  command -v pgrep >/dev/null || need "ps and pgrep (procps)" procps
  [ -s /etc/ssl/certs/ca-certificates.crt ] || [ -s /etc/pki/tls/certs/ca-bundle.crt ] || need "CA certificates" ca-certificates

  PG_BIN=$(find_postgres) || {
    [ -z "${MATRIARCH_PG_BIN:-}" ] || exit 1
    PG_BIN=
  }
  if [ -z "$PG_BIN" ]; then
    need "a PostgreSQL server, version $PG_MIN to $PG_MAX, with its development files" @postgresql
  elif ! has_build_files "$PG_BIN"; then
    local major
    major=$(pg_major "$PG_BIN")
    need "the development files of PostgreSQL $major (for $PG_BIN)" "postgresql-server-dev-$major"
  fi
}

# Which server the distribution offers is known only once apt has its lists.
resolve_packages() {
  local i major
  for i in "${!PACKAGES[@]}"; do
    [ "${PACKAGES[$i]}" = @postgresql ] || continue
    major=$(apt-cache depends postgresql | sed -n 's/.*Depends: postgresql-\([0-9]\+\)$/\1/p' | head -1)
    [ -n "$major" ] || die "apt offers no PostgreSQL server: check /etc/apt/sources.list.d and 'apt-get update'"
    PACKAGES[i]="postgresql-$major"
    PACKAGES+=("postgresql-server-dev-$major")
  done
}

# Debian's server package makes and starts a cluster of its own, which nobody here asked for.
install_packages() {
  local dropin=/etc/postgresql-common/createcluster.d/matriarch-deps.conf rc=0
  say "installing: ${PACKAGES[*]}"
  as_root mkdir -p "$(dirname "$dropin")"
  echo "create_main_cluster = false" | as_root tee "$dropin" >/dev/null
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}" >/tmp/matriarch-deps.$$.log 2>&1 || rc=$?
  as_root rm -f "$dropin"
  if ((rc != 0)); then
    tail -20 "/tmp/matriarch-deps.$$.log" >&2
    die "apt-get install failed (all of its output: /tmp/matriarch-deps.$$.log)"
  fi
  rm -f "/tmp/matriarch-deps.$$.log"
}

install_missing() {
  local list
  list=$(printf '\n  - %s' "${MISSING[@]}")
  on_debian || die "this is not Debian or Ubuntu; install these yourself, then run this again:$list"
  can_be_root || die "run this as root or with passwordless sudo, or install these yourself:$list"
  say "missing:$list"
  say "reading the package lists"
  as_root apt-get update -qq || die "apt-get update failed: check the network and /etc/apt/sources.list.d"
  resolve_packages
  install_packages
}

install_citus() {
  local pg_config="$PG_BIN/pg_config" control version
  control="$("$pg_config" --sharedir)/extension/citus.control"
  if [ -f "$control" ] && ! grep -qiE 'stand-?in' "$control"; then
    version=$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$control")
    say "Citus: the real extension, ${version:-version unknown} ($control)"
    return
  fi
  local standin=(make -s -C test/citus-standin PG_CONFIG="$pg_config") log
  if [ ! -w "$(dirname "$control")" ] && ! can_be_root; then
    [ -f "$control" ] || die "the Citus stand-in must be installed by root: run 'sudo ${standin[*]} install'"
    say "Citus: NOT the real extension but the stand-in as it was installed earlier (only root can bring it up to date)"
    return
  fi
  # Built as the caller, so that the tree keeps its owner; only the copying is root's.
  log=$("${standin[@]}" 2>&1) || die "building the Citus stand-in failed:"$'\n'"$log"
  log=$(as_root "${standin[@]}" install 2>&1) || die "installing the Citus stand-in failed:"$'\n'"$log"
  say "Citus: NOT the real extension but the stand-in from test/citus-standin, for tests and the demo only"
}

# Prometheus' own checker of the alert rules, out of Debian's package: nothing is installed, no service is made.
fetch_promtool() {
  local tool=.cache/promtool dir why
  if command -v promtool >/dev/null || [ -x "$tool" ]; then
    return
  fi
  dir=$(mktemp -d)
  if why=$(promtool_from_debian "$dir" 2>&1); then
    mkdir -p .cache
    mv "$dir/promtool" "$tool"
    say "promtool $("$tool" --version 2>&1 | sed -n 's/^promtool, version \([^ ]*\).*/\1/p') put into $tool (out of Debian's package prometheus, which is not installed)"
  else
    say "promtool: NOT here ($(sed '/^W:/d' <<<"$why" | head -n 1)); the alert rules are checked by Go tests alone"
  fi
  rm -rf "$dir"
}

promtool_from_debian() { # DIRECTORY
  on_debian || { echo "this is not Debian or Ubuntu"; return 1; }
  chmod 755 "$1"
  (cd "$1" && { apt-get download -qq prometheus || { can_be_root && as_root apt-get update -qq && apt-get download -qq prometheus; }; }) || return 1
  dpkg-deb --fsys-tarfile "$1"/prometheus_*.deb | tar -x -C "$1" --strip-components=3 ./usr/bin/promtool || return 1
  "$1/promtool" --version
}

main() {
  check_go
  find_missing
  if ((${#MISSING[@]} > 0)); then
    install_missing
    find_missing
    ((${#MISSING[@]} == 0)) || die "still missing after the installation: ${MISSING[*]}"
  fi
  say "PostgreSQL $("$PG_BIN/postgres" --version | awk '{print $3}') in $PG_BIN"
  install_citus
  fetch_promtool
}

main "$@"
