#!/usr/bin/env bash
# PEFT 0.21.2: layers_to_transform does not hold for target_modules that are written out in full.
#
# `target_modules` may mix suffixes and full paths. A full path is taken before layers_to_transform is looked
# at, so a layer that is not in the list is adapted all the same, and so is "lm_head", whose name is its full
# path. No warning.
#
# Seen:
#   layers_to_transform=[0]: adapted ['lm_head', 'model.layers.0.self_attn.q_proj', 'model.layers.1.mlp.up_proj']
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
from peft.tuners.lora import LoraLayer
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


settings = LoraConfig(
    task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "model.layers.1.mlp.up_proj", "lm_head"],
    layers_to_transform=[0])
model = get_peft_model(base(), settings)
adapted = sorted(name for name, module in model.base_model.model.named_modules() if isinstance(module, LoraLayer))
print(f"layers_to_transform=[0]: adapted {adapted}")
assert adapted == ["lm_head", "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
EOF
