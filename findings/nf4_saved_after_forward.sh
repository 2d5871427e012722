#!/usr/bin/env bash
# bitsandbytes 0.50.2: a model of four bits that has computed on a CPU is saved as another model.
#
# On a processor with AVX512-BF16 a layer in eval mode repacks its weight at its first input. Saving packs it back, but
# not all of it: the magnitudes of the blocks (absmax) stay transposed and in bf16. The folder loads again without a
# warning, each block with the magnitude of another. With double quantization the order is right, but the magnitudes
# have been rounded to bf16 and quantized anew.
#
# Seen:
#   absmax before: torch.float32 [512]; after: torch.bfloat16 [8, 64]
#   saved at once:         off from the quantized model by 0.01 of its logits' size
#   saved after a forward: off from the quantized model by 1.41 of its logits' size
#
# Exits with 1 if this changes, with 0 and a word where the processor has no AVX512-BF16.
# PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
if ! grep -q avx512_bf16 /proc/cpuinfo; then
    echo "this processor has no AVX512-BF16: nothing to see"
    exit 0
fi
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
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

transformers.logging.disable_progress_bar()
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=512, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=1)
model = LlamaForCausalLM(config)
for name, p in model.named_parameters():
    # Columns of different sizes, as in trained models.
    p.data = torch.randn_like(p) * torch.logspace(-1, 0, p.shape[-1]) * 0.2 + float("norm" in name)
model.save_pretrained("base")
ids = torch.arange(10).view(2, 5)
ABSMAX = "model.layers.0.self_attn.k_proj.weight.absmax"


def logits(model):
    with torch.no_grad():
        return model(input_ids=ids).logits


def reloaded(folder):
    """Computed on the dequantized weights, so that nothing but these counts."""
    return logits(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).dequantize(torch.float32))


settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
model = LlamaForCausalLM.from_pretrained("base", quantization_config=settings, dtype=torch.float32)
model.save_pretrained("before")
computed = logits(model.eval())
model.save_pretrained("after")

absmax = [load_file(f"{folder}/model.safetensors")[ABSMAX] for folder in ("before", "after")]
before, after = [f"{a.dtype} {list(a.shape)}" for a in absmax]
print(f"absmax before: {before}; after: {after}")
assert (before, after) == ("torch.float32 [512]", "torch.bfloat16 [8, 64]")
for how, folder in [("at once:        ", "before"), ("after a forward:", "after")]:
    off = ((reloaded(folder) - computed).norm() / computed.norm()).item()
    print(f"saved {how} off from the quantized model by {off:.2f} of its logits' size")
    assert (off > 0.3) == (folder == "after")
PY
