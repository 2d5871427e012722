#!/usr/bin/env bash
# transformers 5.23.0: from_pretrained(.., dtype=torch.float32) has no effect on a folder that bitsandbytes quantized.
#
# What is not quantized, embedding, norms and head, keeps the type of the file, although config.dtype of the model is the
# one that was asked for. So bf16 activations go through layers that compute in f32, and dequantize(torch.float32) gives
# a model that cannot compute. The same model, not quantized, becomes f32.
#
# Seen:
#   dense folder:     asked for torch.float32, config says torch.float32, embedding is torch.float32
#   quantized folder: asked for torch.float32, config says torch.float32, embedding is torch.bfloat16
#   dequantize(torch.float32): expected m1 and m2 to have the same dtype
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet \
        torch==2.15.0 transformers==5.23.0 accelerate==1.15.0 bitsandbytes==0.50.2 safetensors==0.8.0
fi
cd "$work"
export HF_HUB_OFFLINE=1 # every model is made here
"$PYTHON" -W ignore - 2> errors <<'PY' || { cat errors; exit 1; }
import torch
import transformers
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

transformers.logging.disable_progress_bar()
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained("dense")
model = LlamaForCausalLM.from_pretrained(
    "dense", quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.bfloat16)
model.save_pretrained("quantized")
for folder, expected in [("dense", torch.float32), ("quantized", torch.bfloat16)]:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = model.get_input_embeddings().weight.dtype
    print(f"{folder + ' folder:':17} asked for torch.float32, config says {model.config.dtype}, embedding is {found}")
    assert (model.config.dtype, found) == (torch.float32, expected)
model = model.dequantize(torch.float32)
try:
    model(input_ids=torch.arange(10).view(2, 5))
except RuntimeError as error:
    print(f"dequantize(torch.float32): {str(error).split(',')[0]}")
else:
    raise SystemExit("the dequantized model computes")
PY
