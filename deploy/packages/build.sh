#!/bin/bash
# Makes the .deb and .rpm of both architectures: build.sh VERSION DIRECTORY. The same sources and Go give the same bytes.
set -euo pipefail
version=$1 out=$(realpath -m "$2")
cd "$(dirname "$0")/../.."

# Debian and RPM compare versions from the left: one that is not a release sorts below every release, by its date.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
PACKAGE_VERSION=${version#v}
[[ $PACKAGE_VERSION =~ ^[0-9]+\.[0-9]+ ]] || PACKAGE_VERSION="0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M)+$PACKAGE_VERSION"
PACKAGE_VERSION=${PACKAGE_VERSION//-/.}
MTIME=$(date -u -d "@$SOURCE_DATE_EPOCH" +%FT%TZ)
LICENSE=Apache-2.0
export PACKAGE_VERSION MTIME LICENSE

stage=$(mktemp -d /tmp/matriarch-packages-XXXXXX)
trap 'rm -rf "$stage"' EXIT
deploy/release/binaries.sh "$version" "$stage/bin"

# Pages and completions come from the program itself, so it must run here.
case $(uname -m) in aarch64) here=arm64 ;; *) here=amd64 ;; esac
mkdir "$stage/man"
"$stage/bin/matriarch_linux_$here" manpages "$stage/man"
gzip -9n "$stage"/man/*.8
for shell in bash zsh fish; do
  "$stage/bin/matriarch_linux_$here" completion "$shell" >"$stage/$shell"
done
# By hand the program goes to /usr/local, as a package to /usr.
sed 's|/usr/local/bin/matriarch|/usr/bin/matriarch|g' deploy/systemd/matriarch.service >"$stage/matriarch.service"

rm -f "$out"/*.deb "$out"/*.rpm
mkdir -p "$out"
for ARCH in amd64 arm64; do
  cp "$stage/bin/matriarch_linux_$ARCH" "$stage/matriarch"
  export ARCH STAGE=$stage
  # nfpm fills in variables in few places; the whole file is what is wanted.
  perl -pe 's/\$\{(\w+)\}/$ENV{$1}/g' deploy/packages/nfpm.yaml >"$stage/nfpm.yaml"
  for kind in deb rpm; do
    .cache/nfpm package --config "$stage/nfpm.yaml" --packager "$kind" --target "$out/" >/dev/null
  done
done
(cd "$out" && ls -1 ./*.deb ./*.rpm)
