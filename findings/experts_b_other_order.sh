#!/usr/bin/env bash
# PEFT 0.21.2: of an adapter on a MoE model's experts, lora_A has each expert's rows together, and lora_B its columns
# apart.
#
# With E experts of rank r, rows e*r to e*r + r - 1 of lora_A are those of expert e. The columns of lora_B for it are e,
# e + E, e + 2E, and so on. The shapes do not tell: by the order of lora_A, every expert gets columns of others.
#
# Seen (Qwen3-MoE, 4 experts, rank 2; the difference from get_delta_weight, relative to it):
#   columns e, e + E, ..: 0.0
#   columns e*r .. e*r + r - 1: 1.3
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

E, R = 4, 2
torch.manual_seed(0)
model = get_peft_model(
    Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        num_experts=E, num_experts_per_tok=2, moe_intermediate_size=24)),
    LoraConfig(r=R, lora_alpha=R, target_modules=[], target_parameters=["mlp.experts.down_proj"]))
experts = model.base_model.model.model.layers[0].mlp.experts
A, B = experts.lora_A["default"].weight.detach(), experts.lora_B["default"].weight.detach()
torch.nn.init.normal_(B)
expected = experts.get_delta_weight("default").detach()


def error(columns):
    found = torch.stack([B[:, columns(e)] @ A[e * R:e * R + R] for e in range(E)])
    return ((found - expected).norm() / expected.norm()).item()


apart = error(lambda e: slice(e, None, E))
together = error(lambda e: slice(e * R, e * R + R))
print(f"columns e, e + E, ..: {apart:.1f}")
print(f"columns e*r .. e*r + r - 1: {together:.1f}")
assert apart < 1e-5 and together > 0.5
EOP
