#!/usr/bin/env bash
# PEFT 0.21.2: `all-linear` leaves out the dense MLPs of a MoE model that has both kinds of layers, silently.
#
# The names gate_proj, up_proj and down_proj are replaced by those of the experts' parameters for all layers, though a
# dense layer has linear layers of these names. The same happens if target_modules lists them.
#
# Seen (Qwen3-MoE with mlp_only_layers [0]; the linear layers of layer 0, and those that got an adapter):
#   has:     down_proj gate_proj k_proj o_proj q_proj up_proj v_proj
#   adapted: k_proj o_proj q_proj v_proj
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
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
    mlp_only_layers=[0]))
has = [name.split(".")[-1] for name, module in model.model.layers[0].named_modules()
       if isinstance(module, torch.nn.Linear)]
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
adapted = [name.split(".")[-1] for name, module in model.base_model.model.model.layers[0].named_modules()
           if hasattr(module, "lora_A")]
print("has:    ", *sorted(has))
print("adapted:", *sorted(adapted))
assert set(has) - set(adapted) == {"gate_proj", "up_proj", "down_proj"} and len(adapted) == 4
EOP
