#!/usr/bin/env bash
# Brings NVIDIA's libdevice from PyPI, which CubeCL links into kernels that call mathematical functions,
# for machines with NVIDIA's driver but no CUDA toolkit. Prints the folder for CUDA_PATH. Needs Python 3
# with pip.
#
#     export CUDA_PATH="$(scripts/install_libdevice.sh)"
set -euo pipefail

version="${NVVM_VERSION:-13.0.88}"
target="${XDG_DATA_HOME:-$HOME/.local/share}/burn-peft/nvvm-$version"

if [ ! -f "$target/nvvm/libdevice/libdevice.10.bc" ]; then
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --no-deps --dest "$work" "nvidia-nvvm==$version" >&2
    python3 -m zipfile -e "$work"/*.whl "$work/unpacked" >&2
    mkdir -p "$target/nvvm/libdevice"
    find "$work/unpacked" -name libdevice.10.bc -exec cp {} "$target/part" \;
    mv "$target/part" "$target/nvvm/libdevice/libdevice.10.bc"
fi
echo "$target"
