#!/usr/bin/env bash
# Compares training steps with PEFT on PyTorch: same model, data and threads, side by side.
#
#     benches/vs_peft/run.sh [--quick]
#
# --quick runs the first row alone, three times. The environment and the case stay in
# ~/.cache/burn-peft-vs-peft.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/burn-peft-vs-peft"
python="$cache/venv/bin/python"
mkdir -p "$cache"
[ -x "$python" ] || python3 -m venv "$cache/venv"
"$python" -m pip install --quiet -r tests/python/requirements.txt
"$python" benches/vs_peft/case.py "$cache/case"

built="$(cargo bench --bench train_step --no-run --message-format=json |
    "$python" -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "train_step":
        print(message["executable"])')"

rounds=5
for argument in "$@"; do
    [ "$argument" != --quick ] || rounds=3
done
exec "$python" benches/vs_peft/compare.py \
    --case "$cache/case" --train-step "$built" --rounds "$rounds" "$@"
