#!/bin/bash
# Builds the program for amd64 and arm64: binaries.sh VERSION DIRECTORY [SOURCE]. The same source and Go give the same bytes anywhere.
set -euo pipefail
version=$1 out=$(realpath -m "$2")
cd "${3:-$(dirname "$0")/../..}"
mkdir -p "$out"
for arch in amd64 arm64; do
  GOOS=linux GOARCH=$arch CGO_ENABLED=0 GOFLAGS= go build -buildvcs=false -trimpath -tags hashicorpmetrics \
    -ldflags "-s -w -buildid= -X main.version=$version" -o "$out/matriarch_linux_$arch" ./cmd/matriarch
done
