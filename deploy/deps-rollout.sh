#!/bin/bash
# Installs what `make rollout` needs besides the dependencies of the build: container hosts, Ansible and its linters. Debian only, as root.
set -euo pipefail

packages=()
need() { command -v "$1" >/dev/null || packages+=("$2"); }
need systemd-nspawn systemd-container
need mmdebstrap mmdebstrap
need ansible-playbook ansible-core
need ansible-lint ansible-lint
need yamllint yamllint
need ssh openssh-client
need ip iproute2
if ((${#packages[@]} > 0)); then
  echo "deps-rollout: installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
