#!/usr/bin/env bash
# PEFT 0.21.2: without `use_dora` in the configuration a DoRA file is read as plain LoRA, silently.
#
# Where the tensors are DoRA's but the configuration does not say so, as another program may write it,
# PeftModel.from_pretrained drops the magnitudes as unknown keys. It warns of missing keys only, and none is
# missing: the model computes something else than what was trained.
#
# Seen:
#   with use_dora:    magnitudes loaded: 2, logits differ by 0.000
#   without use_dora: magnitudes loaded: 0, logits differ by 0.020, warnings about it: 0
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
import json
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
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


def load():
    """The model, and the warnings that speak of keys."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base(), "adapter").eval()
    told = [w for w in caught if "key" in str(w.message) or "magnitude" in str(w.message)]
    magnitudes = [key for key, _ in loaded.named_parameters() if "magnitude" in key]
    return loaded, len(magnitudes), len(told)


settings = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj"], use_dora=True)
model = randomize(get_peft_model(base(), settings))
model.save_pretrained("adapter")
loaded, magnitudes, _ = load()
print(f"with use_dora:    magnitudes loaded: {magnitudes}, logits differ by {difference(model, loaded):.3f}")
assert magnitudes == 2 and difference(model, loaded) < 1e-5

path = Path("adapter/adapter_config.json")
written = json.loads(path.read_text())
del written["use_dora"]
path.write_text(json.dumps(written))
loaded, magnitudes, told = load()
print(f"without use_dora: magnitudes loaded: {magnitudes}, logits differ by {difference(model, loaded):.3f}, "
      f"warnings about it: {told}")
assert magnitudes == 0 and told == 0 and difference(model, loaded) > 0.001
EOF
