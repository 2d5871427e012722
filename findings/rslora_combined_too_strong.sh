#!/usr/bin/env bash
# PEFT 0.21.2: add_weighted_adapter makes an rsLoRA adapter sqrt(r) times too strong.
#
# The new adapter gets alpha = r, for a scale of 1, and the scales of the old ones go into its tensors. But
# it keeps use_rslora, whose scale is alpha / sqrt(r) = sqrt(r). So even one adapter with the weight 1.0,
# combined by "cat", which is said to be exact, is not that adapter. No warning. (Reported to PEFT as issue
# 3761.)
#
# Seen (rank 16):
#   LoRA:   a copy's change of the weight is 1.00 times the original's
#   rsLoRA: a copy's change of the weight is 4.00 times the original's
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
"$PYTHON" -W ignore - <<'EOF'
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.disable_progress_bar()
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
LlamaForCausalLM(config).save_pretrained("base")
ids = torch.arange(10).view(2, 5)


def base():
    return LlamaForCausalLM.from_pretrained("base", dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=ids).logits


def difference(model, other):
    return (logits(model) - logits(other)).abs().max().item()


def randomize(model):
    """Trained tensors of a size that counts."""
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn_like(p)
    return model.eval()


def strength(use_rslora):
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=["q_proj"], use_rslora=use_rslora)
    model = randomize(get_peft_model(base(), settings))
    model.add_weighted_adapter(["default"], [1.0], "copy", "cat")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    return (layer.get_delta_weight("copy").norm() / layer.get_delta_weight("default").norm()).item()


for name, use_rslora, expected in [("LoRA:  ", False, 1.0), ("rsLoRA:", True, 4.0)]:
    found = strength(use_rslora)
    print(f"{name} a copy's change of the weight is {found:.2f} times the original's")
    assert abs(found - expected) < 1e-3
EOF
