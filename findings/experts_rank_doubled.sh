#!/usr/bin/env bash
# PEFT 0.21.2: `r` and `lora_alpha` are doubled for the gate and up projections of a MoE model's experts if they are
# targeted by `all-linear` or by their names of transformers 4, and not if by the parameter that they are now.
#
# This is `gate_up_proj`, one for the two, and an adapter of transformers 4 had `r` for each. A new adapter, with
# nothing to convert, is made as large as two. A warning says that the rank_pattern for it was ignored, which it is not.
#
# Seen (Qwen3-MoE, r=8, lora_alpha=16; rank and alpha of an expert's gate_up_proj and down_proj):
#   target_modules all-linear: (16, 32), (8, 16)
#   target_modules gate_proj, up_proj, down_proj: (16, 32), (8, 16)
#   target_parameters gate_up_proj, down_proj: (8, 16), (8, 16)
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
fi
cd "$work"
export HF_HUB_OFFLINE=1 # every model is made here
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
from peft import LoraConfig, get_peft_model
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

WAYS = [{"target_modules": "all-linear"}, {"target_modules": ["gate_proj", "up_proj", "down_proj"]},
        {"target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"]}]


def ranks(way):
    model = get_peft_model(
        Qwen3MoeForCausalLM(Qwen3MoeConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)),
        LoraConfig(r=8, lora_alpha=16, **way))
    down = model.base_model.model.model.layers[0].mlp.experts
    gate_up = down.base_layer
    assert (gate_up.parameter_name, down.parameter_name) == ("gate_up_proj", "down_proj")
    return [(layer.r["default"], layer.lora_alpha["default"]) for layer in [gate_up, down]]


found = [ranks(way) for way in WAYS]
for way, pair in zip(["target_modules all-linear", "target_modules gate_proj, up_proj, down_proj",
                      "target_parameters gate_up_proj, down_proj"], found):
    print(f"{way}: {pair[0]}, {pair[1]}")
assert found == [[(16, 32), (8, 16)], [(16, 32), (8, 16)], [(8, 16), (8, 16)]]
EOP
