#!/usr/bin/env bash
# Compares training steps with PEFT on PyTorch: same model, data and threads, side by side.
#
#     benches/vs_peft/run.sh [--quick] [--rounds N] [--only TEXT] [--threads N]
#
# --quick runs the first row alone, three times; --only those whose name contains TEXT. The
# environment and the case stay in ~/.cache/burn-peft-vs-peft.
#
# The row with Alpaca data needs ALPACA_JSON, a JSON file of Alpaca records, and LLAMA2_TOKENIZER,
# the tokenizer.json of Llama 2; both are looked for in $BURN_PEFT_SHARED/assets if they are unset.
set -euo pipefail

root="$(cd "$(dirname "$0")/../.." && pwd)"
assets="${BURN_PEFT_SHARED:+$BURN_PEFT_SHARED/assets}"
alpaca="${ALPACA_JSON:-${assets:+$assets/alpaca/alpaca_en_demo.json}}"
tokenizer="${LLAMA2_TOKENIZER:-${assets:+$assets/llama2_tokenizer/tokenizer.json}}"

cache="${XDG_CACHE_HOME:-$HOME/.cache}/burn-peft-vs-peft"
python="$cache/venv/bin/python"
mkdir -p "$cache"
[ -x "$python" ] || python3 -m venv "$cache/venv"
"$python" -m pip install --quiet -r "$root/tests/python/requirements.txt"
"$python" "$root/benches/vs_peft/case.py" "$cache/case" \
    --alpaca "$alpaca" --tokenizer "$tokenizer"

built="$(cd "$root" && cargo bench --bench train_step --no-run --message-format=json |
    "$python" -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "train_step":
        print(message["executable"])')"

exec "$python" "$root/benches/vs_peft/compare.py" \
    --case "$cache/case" --train-step "$built" "$@"
