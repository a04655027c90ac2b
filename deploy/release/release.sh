#!/bin/bash
# Makes what is published: release.sh VERSION DIRECTORY. Binaries, a bill of materials for each, and checksums of all.
# VERIFY=0 leaves out the second build, from a copy of the sources elsewhere and with an empty cache, which must give the same bytes.
set -euo pipefail
version=$1 out=$(realpath -m "$2")
cd "$(dirname "$0")/../.."
rm -rf "$out"
deploy/release/binaries.sh "$version" "$out"
for arch in amd64 arm64; do
  go run -buildvcs=false ./deploy/release/sbom -version "$version" "$out/matriarch_linux_$arch" >"$out/matriarch_linux_$arch.cdx.json"
done
(cd "$out" && sha256sum matriarch_linux_* >SHA256SUMS)

if [ "${VERIFY:-1}" = 1 ]; then
  again=$(mktemp -d /tmp/matriarch-release-XXXXXX)
  trap 'rm -rf "$again"' EXIT
  mkdir "$again/source" "$again/cache"
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do [ ! -e "$f" ] || printf '%s\0' "$f"; done |
    tar --null -T - -cf - | tar -xf - -C "$again/source"
  GOCACHE=$again/cache deploy/release/binaries.sh "$version" "$again/out" "$again/source"
  for arch in amd64 arm64; do
    cmp "$out/matriarch_linux_$arch" "$again/out/matriarch_linux_$arch" || {
      echo "release: matriarch_linux_$arch is another when it is built again elsewhere: nothing of $out may be published" >&2
      exit 1
    }
  done
  echo "release: built twice, in two places, the same bytes"
fi
cat "$out/SHA256SUMS"
