#!/usr/bin/env bash
# Brings NVIDIA's cuBLAS from PyPI, for machines with NVIDIA's driver but no CUDA toolkit. Prints the
# folder for LD_LIBRARY_PATH. Needs Python 3 with pip, and 1.1 GB on disk. A driver of CUDA 12 wants
# CUBLAS_PACKAGE=nvidia-cublas-cu12==12.9.1.4.
#
#     export LD_LIBRARY_PATH="$(scripts/install_cublas.sh)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
set -euo pipefail

package="${CUBLAS_PACKAGE:-nvidia-cublas==13.0.2.14}"
target="${XDG_DATA_HOME:-$HOME/.local/share}/burn-peft/cublas-${package##*==}"

if [ ! -f "$target/complete" ]; then
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --no-deps --dest "$work" "$package" >&2
    python3 -m zipfile -e "$work"/*.whl "$work/unpacked" >&2
    mkdir -p "$target"
    find "$work/unpacked" -name 'libcublas*.so*' -exec cp -t "$target" {} +
    ls "$target"/libcublas.so* "$target"/libcublasLt.so* >/dev/null
    touch "$target/complete"
fi
echo "$target"
