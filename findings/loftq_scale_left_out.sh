#!/usr/bin/env bash
# PEFT 0.21.2: LoftQ leaves the adapter's scale out, so with alpha = 4r the layers begin further from their weights than
# without an adapter.
#
# replace_lora_weights_loftq decomposes the error of the quantization, W - Q, into B·A. But the layer adds s·B·A with
# s = lora_alpha / r. With s = 1 the error shrinks, as it should; with s = 4, or with rsLoRA, three times what was made up
# for is added. LoftQConfig's way (loftq_init) is the same. No warning. That it wants a GPU has nothing to do with it: here
# the name of the device in the function is changed.
#
# Seen (rank 8), the error of a layer in parts of that of plain NF4:
#   alpha  8: 0.89
#   alpha 32: 1.64
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet \
        torch==2.15.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 bitsandbytes==0.50.2 safetensors==0.8.0
fi
cd "$work"
export HF_HUB_OFFLINE=1 # every model is made here
"$PYTHON" -W ignore - 2> errors <<'PY' || { cat errors; exit 1; }
import inspect

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.utils import loftq_utils
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

transformers.logging.disable_progress_bar()
source = inspect.getsource(loftq_utils._loftq_init_new)
assert '"cuda"' in source
exec(source.replace('"cuda"', '"cpu"'), vars(loftq_utils))
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=4)
dense = LlamaForCausalLM(config)
dense.save_pretrained("base")
weight = dense.model.layers[0].self_attn.q_proj.weight.data
settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def errors(alpha):
    """Of the layer that is quantized, and of that with the adapter."""
    model = LlamaForCausalLM.from_pretrained("base", quantization_config=settings, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=alpha, target_modules=["q_proj"]))
    loftq_utils.replace_lora_weights_loftq(model, "base")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    quantized = layer.base_layer(torch.eye(128)).float().T
    adapted = quantized + layer.get_delta_weight("default")
    return [(w - weight).norm().item() for w in (quantized, adapted)]


for alpha, grows in [(8, False), (32, True)]:
    without, adapted = errors(alpha)
    print(f"alpha {alpha:2}: {adapted / without:.2f}")
    assert (adapted > without) == grows
PY
