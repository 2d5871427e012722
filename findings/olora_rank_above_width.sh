#!/usr/bin/env bash
# PEFT 0.21.2: OLoRA with a rank above a layer's width gives tensors of another rank than the configuration, and
# the saved folder does not load.
#
# The QR decomposition of a weight has at most as many columns as the shorter side. The tensors get that rank, the
# configuration keeps the one asked for. Nothing is said when the adapter is made or saved.
#
# Seen (rank 24, key and value projections of 16 outputs):
#   configuration: 24, tensors: 16
#   loading the folder: RuntimeError
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
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.disable_progress_bar()
torch.manual_seed(0)


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2))


settings = LoraConfig(
    task_type="CAUSAL_LM", r=24, lora_alpha=24, target_modules=["k_proj"], init_lora_weights="olora")
model = get_peft_model(base(), settings)
layer = model.base_model.model.model.layers[0].self_attn.k_proj
found = layer.lora_A["default"].weight.shape[0]
print(f"configuration: {layer.r['default']}, tensors: {found}")
assert (layer.r["default"], found) == (24, 16)
# As a plain adapter, which is how a converted one is read.
model.peft_config["default"].init_lora_weights = True
model.save_pretrained("adapter")
try:
    PeftModel.from_pretrained(base(), "adapter")
except RuntimeError as error:
    print(f"loading the folder: {type(error).__name__}")
else:
    raise SystemExit("the folder loads")
EOP
