#!/usr/bin/env bash
# transformers 5.23.0: a `sliding_window` in the configuration of a Llama, which has none, makes its cache forget.
#
# Llama's attention takes no notice of the setting. The cache is made from it all the same, and keeps the last keys
# only. So one pass over a text is right, and the same text by a cache, as in generation, is not, silently.
#
# Seen (a window of 4, 24 tokens, compared with the model without the setting):
#   in one pass: the logits differ by 0.0
#   12 tokens, then 12 by the cache: by 10.9
#   without the setting, 12 tokens, then 12 by the cache: by 0.0
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

ids = torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(1))


def make(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3, **more)).eval()


def two_passes(model):
    begin = model(ids[:, :12], use_cache=True)
    return model(ids[:, 12:], past_key_values=begin.past_key_values).logits


with torch.no_grad():
    model, stray = make(), make(sliding_window=4)
    expected = model(ids).logits
    whole = (stray(ids).logits - expected).abs().max().item()
    by_cache = (two_passes(stray) - expected[:, 12:]).abs().max().item()
    without = (two_passes(model) - expected[:, 12:]).abs().max().item()
print(f"in one pass: the logits differ by {whole:.1f}")
print(f"12 tokens, then 12 by the cache: by {by_cache:.1f}")
print(f"without the setting, 12 tokens, then 12 by the cache: by {without:.1f}")
assert whole == 0 and by_cache > 0.1 and without < 1e-3
EOP
