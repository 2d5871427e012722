#!/usr/bin/env bash
# transformers 5.23.0: packed sequences are separated by `position_ids` only if there is neither an attention mask nor a
# cache. With a mask of ones, which masks nothing, or with `use_cache` as it is by default, the second sequence attends
# to the first, silently.
#
# Seen (sequences of 10 and 14 tokens in one row; the logits of the second, compared with those of it alone):
#   use_cache=False: 0.0
#   use_cache by default: 12.2
#   use_cache=False, attention_mask of ones: 12.2
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet torch==2.15.0 transformers==5.23.0
fi
cd "$work"
export HF_HUB_OFFLINE=1 # every model is made here
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, initializer_range=0.3)).eval()
ids = torch.randint(0, 64, (1, 24))
positions = torch.cat([torch.arange(10), torch.arange(14)])[None]


def difference(**more):
    with torch.no_grad():
        packed = model(ids, position_ids=positions, **more).logits[:, 10:]
        return (packed - model(ids[:, 10:]).logits).abs().max().item()


plain, cache = difference(use_cache=False), difference()
mask = difference(use_cache=False, attention_mask=torch.ones_like(ids))
print(f"use_cache=False: {plain:.1f}")
print(f"use_cache by default: {cache:.1f}")
print(f"use_cache=False, attention_mask of ones: {mask:.1f}")
assert plain < 1e-3 and cache > 0.1 and mask > 0.1
EOP
