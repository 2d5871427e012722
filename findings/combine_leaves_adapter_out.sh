#!/usr/bin/env bash
# PEFT 0.21.2: add_weighted_adapter with fewer weights than adapters leaves the last adapters out, silently.
#
# Names and weights are paired up to the shorter of the two lists. Two adapters with one weight, combined by
# "cat", are the first adapter alone. No error, no warning.
#
# Seen:
#   two adapters, one weight: 0.00 of the change of the second is in the result
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
"$PYTHON" -W ignore - <<'EOP'
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.disable_progress_bar()
torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4))
settings = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=4, target_modules=["q_proj"])
model = get_peft_model(base, settings, adapter_name="first")
model.add_adapter("second", settings)
for name, p in model.named_parameters():
    if "lora_" in name:
        p.data = torch.randn_like(p)
model.add_weighted_adapter(["first", "second"], [1.0], "both", "cat")
layer = model.base_model.model.model.layers[0].self_attn.q_proj
first, second, both = (layer.get_delta_weight(name).detach() for name in ["first", "second", "both"])
share = ((both - first).norm() / second.norm()).item()
print(f"two adapters, one weight: {share:.2f} of the change of the second is in the result")
assert share < 1e-5
EOP
