#!/usr/bin/env bash
# transformers 5.23.0: OLMo 3 and Gemma 3 ignore a rope scaling in two of the ways to write it that other families read.
#
# These families have settings of rope for each kind of layer. A `rope_parameters` that is not by the kind of layer is
# kept beside defaults, which count. So is the `type` of a `rope_scaling`, the name for `rope_type` in older files.
#
# Seen (a linear scaling by 8, layers of full attention, change of the logits; silently where it is 0):
#   llama:  rope_parameters 9.9, rope_scaling with rope_type 9.9, with type 9.9
#   olmo3:  rope_parameters 0.0, rope_scaling with rope_type 4.9, with type 0.0
#   gemma3: rope_parameters 0.0, rope_scaling with rope_type 0.5, with type 0.0
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
from copy import deepcopy

import torch
from transformers import (
    Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Olmo3Config, Olmo3ForCausalLM)

WAYS = [{"rope_parameters": {"rope_type": "linear", "factor": 8.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_scaling": {"type": "linear", "factor": 8.0}}]


def logits(Config, Model, **rope):
    torch.manual_seed(0)
    more = {} if Config is LlamaConfig else {"layer_types": ["full_attention"] * 2}
    model = Model(Config(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0,
        rope_theta=10000.0, **more, **deepcopy(rope))).eval()
    with torch.no_grad():
        return model(torch.arange(24)[None]).logits


def changes(Config, Model):
    without = logits(Config, Model)
    return [(logits(Config, Model, **way) - without).abs().max().item() for way in WAYS]


found = {"llama": changes(LlamaConfig, LlamaForCausalLM), "olmo3": changes(Olmo3Config, Olmo3ForCausalLM),
         "gemma3": changes(Gemma3TextConfig, Gemma3ForCausalLM)}
for family, (flat, rope_type, kind) in found.items():
    print(f"{family + ':':7} rope_parameters {flat:.1f}, "
          f"rope_scaling with rope_type {rope_type:.1f}, with type {kind:.1f}")
assert min(found["llama"]) > 0.1
for family in ["olmo3", "gemma3"]:
    flat, rope_type, kind = found[family]
    assert flat == 0 and rope_type > 0.1 and kind == 0
EOP
