#!/usr/bin/env bash
# transformers 5.23.0: YaRN's `truncate: false` has no effect in OLMo 3 and Gemma 3.
#
# These families have settings of rope for each kind of layer. All of YaRN's are read from there but `truncate`, which
# is read from the level outside, among the kinds of layers.
#
# Seen (YaRN by 4 from 4096 positions; the largest relative change of a frequency):
#   llama: 0.0836
#   olmo3: 0.0000 beside the other settings, 0.0836 outside of them
#   gemma3: 0.0000 beside the other settings, 0.0836 outside of them
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
from transformers import (
    Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Olmo3Config, Olmo3ForCausalLM)

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=1,
             num_key_value_heads=1, head_dim=64, max_position_embeddings=16384, pad_token_id=0)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "rope_theta": 10000.0}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
OFF = {"truncate": False}


def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters={**YARN, **more})).model.rotary_emb.inv_freq


def by_layer(Config, Model, inside={}, outside={}):
    rope = {"full_attention": {**YARN, **inside}, "sliding_attention": dict(DEFAULT), **outside}
    model = Model(Config(**SIZES, layer_types=["full_attention"], rope_parameters=rope))
    return model.model.rotary_emb.full_attention_inv_freq


def change(a, b):
    return ((a - b).abs() / b).max().item()


truncated = change(llama(**OFF), llama())
print(f"llama: {truncated:.4f}")
assert truncated > 0.01
for family, *kind in [("olmo3", Olmo3Config, Olmo3ForCausalLM), ("gemma3", Gemma3TextConfig, Gemma3ForCausalLM)]:
    without = by_layer(*kind)
    inside, outside = (change(by_layer(*kind, **{place: OFF}), without) for place in ["inside", "outside"])
    print(f"{family}: {inside:.4f} beside the other settings, {outside:.4f} outside of them")
    assert inside == 0 and outside > 0.01
EOP
