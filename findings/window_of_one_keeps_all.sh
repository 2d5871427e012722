#!/usr/bin/env bash
# transformers 5.23.0: with a sliding window of one token, generation with a cache computes other logits than without.
#
# The cache of such a layer is to keep the last window - 1 keys. Of a window of one that is none, but the slice that
# takes them, "the last 0", takes all.
#
# Seen (a Mistral, 12 tokens):
#   window 2: with a cache the logits differ by 0.0
#   window 1: by 7.4, and the cache holds 11 tokens
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
from transformers import MistralConfig, MistralForCausalLM

ids = torch.randint(0, 64, (1, 12), generator=torch.Generator().manual_seed(0))


def difference(window):
    """Of the last logits with and without a cache, and how many keys a layer of the cache holds."""
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=window, initializer_range=0.3)).eval()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits[:, -1]
        cache = model(ids[:, :11], use_cache=True).past_key_values
        held = cache.layers[0].keys.shape[2]
        found = model(ids[:, 11:], past_key_values=cache).logits[:, -1]
    return (found - expected).abs().max().item(), held


two, _ = difference(2)
one, held = difference(1)
print(f"window 2: with a cache the logits differ by {two:.1f}")
print(f"window 1: by {one:.1f}, and the cache holds {held} tokens")
assert two < 1e-4 and one > 0.1 and held == 11
EOP
