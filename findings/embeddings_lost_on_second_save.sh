#!/usr/bin/env bash
# PEFT 0.21.2: an adapter folder with changed embeddings loses them when it is loaded and saved again.
#
# With save_embedding_layers=True a folder holds the whole embeddings beside the adapter; loading puts them
# into the base model. Saving what was loaded, as after some more training, leaves them out: the default
# "auto" writes them only where they are a target or the vocabulary grew, and nothing remembers that they
# came from the adapter. The second folder loads without a warning, with the base model's embeddings.
#
# Seen:
#   first folder: 6 tensors, logits differ by 0.000
#   second folder: 4 tensors, logits differ by 0.163
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
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
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


def show(name, model):
    loaded = PeftModel.from_pretrained(base(), name).eval()
    count, error = len(load_file(f"{name}/adapter_model.safetensors")), difference(model, loaded)
    print(f"{name} folder: {count} tensors, logits differ by {error:.3f}")
    return loaded, count, error


settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
model = randomize(get_peft_model(base(), settings))
model.get_input_embeddings().weight.data *= 2  # somebody trained it
model.save_pretrained("first", save_embedding_layers=True)
loaded, count, error = show("first", model)
assert count == 6 and error < 1e-5
loaded.save_pretrained("second")
_, count, error = show("second", model)
assert count == 4 and error > 0.01
EOF
