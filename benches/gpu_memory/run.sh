#!/usr/bin/env bash
# Counts the memory that a training step takes from a GPU, on a machine without one: the real program on a CUDA
# driver that computes nothing. CUDA's own 0.7 to 0.9 GB are not counted.
#
#     benches/gpu_memory/run.sh                              # the rows of docs/performance.md
#     benches/gpu_memory/run.sh --seq-len 512 --recompute    # options of benches/train_step.rs
#
# Each row runs twice: the first time on a machine CubeCL also measures the card, with 2 GB of its own.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
driver="$(mktemp -d)"
trap 'rm -rf "$driver"' EXIT
cc -shared -fPIC -O1 -w -o "$driver/libcuda.so" "$here/driver.c" -pthread
ln -s libcuda.so "$driver/libcublas.so"

CUDA_PATH="$("$here/../../scripts/install_libdevice.sh")"
export CUDA_PATH
built="$(cd "$here" && cargo bench --features cuda --bench train_step --no-run --message-format=json |
    grep '"name":"train_step"' | grep -o '"executable":"[^"]*"' | cut -d'"' -f4)"

# shellcheck disable=SC2086 # options, separated by blanks
peak() {
    BURN_DEVICE=cuda CUBECL_AUTOTUNE_LEVEL=minimal LD_LIBRARY_PATH="$driver" \
        "$built" --sizes llama2_7b --dtype bf16 --steps 4 $1 2>&1 >/dev/null | grep '^peak'
}

count() {
    peak "$1" >/dev/null
    echo "$1: $(peak "$1")"
}

if [ $# -gt 0 ]; then
    count "$*"
    exit
fi
for adapters in "" " --rank 32 --all-modules"; do
    for seq_len in 512 2048 4096; do
        count "--seq-len $seq_len$adapters"
        count "--seq-len $seq_len$adapters --recompute"
    done
done
for batch_size in 1 2; do
    count "--quantize nf4 --batch-size $batch_size --seq-len 512 --recompute"
done
