#!/usr/bin/env bash
# Installs Mesa's Vulkan for CPUs on Debian and Ubuntu, unless a Vulkan is there: what the feature `wgpu` is
# tested with on machines without a GPU.
set -euo pipefail

if ls /usr/share/vulkan/icd.d/*.json >/dev/null 2>&1; then
    exit 0
fi
sudo=""
[ "$(id -u)" -eq 0 ] || sudo=sudo
$sudo apt-get update --quiet --quiet
$sudo apt-get install --quiet --quiet --yes --no-install-recommends mesa-vulkan-drivers
