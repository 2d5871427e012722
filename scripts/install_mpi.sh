#!/usr/bin/env bash
# Installs what the feature `mpi` is built with on Debian and Ubuntu, unless it is there: Open MPI,
# and libclang, which reads MPI's header. Any other implementation of MPI 3 with `mpicc` serves too.
set -euo pipefail

if command -v mpicc >/dev/null && ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1; then
    exit 0
fi
sudo=""
[ "$(id -u)" -eq 0 ] || sudo=sudo
$sudo apt-get update --quiet --quiet
$sudo apt-get install --quiet --quiet --yes --no-install-recommends \
    libopenmpi-dev openmpi-bin libclang-dev
