#!/usr/bin/env bash
# PEFT 0.21.2, transformers 5.23.0: each reads adapter keys that the other leaves at their first values.
#
# The same adapter file may be given to PeftModel.from_pretrained or to load_adapter of a transformers model.
# Keys without "base_model.model." are read by transformers; PEFT finds none of them, warns, and gives the
# base model. Keys with the adapter's name in them, "lora_A.default.weight", are read by PEFT; transformers
# inserts the name again, "default.default", logs a table, and gives the base model. Neither raises.
#
# Seen (largest difference of the logits from the adapter's; the base model's is the large one):
#                                PEFT   transformers
#   as PEFT writes them         0.000          0.000
#   without base_model.model.   0.435          0.000
#   with .default               0.000          0.435
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
from safetensors.torch import load_file, save_file
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


def errors(model, change):
    """Of the adapter with changed keys, read by both."""
    model.save_pretrained("adapter")
    path = "adapter/adapter_model.safetensors"
    save_file({change(key): t for key, t in load_file(path).items()}, path, {"format": "pt"})
    by_transformers = base()
    by_transformers.load_adapter("adapter")
    return (difference(model, PeftModel.from_pretrained(base(), "adapter").eval()),
            difference(model, by_transformers.eval()))


transformers.logging.set_verbosity_error()
settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
model = randomize(get_peft_model(base(), settings))
STYLES = [
    ("as PEFT writes them", lambda key: key, True, True),
    ("without base_model.model.", lambda key: key.removeprefix("base_model.model."), False, True),
    ("with .default", lambda key: key.replace(".weight", ".default.weight"), True, False),
]
print(f"{'':26} {'PEFT':>6} {'transformers':>14}")
for name, change, peft_reads, transformers_reads in STYLES:
    by_peft, by_transformers = errors(model, change)
    print(f"{name:26} {by_peft:6.3f} {by_transformers:14.3f}")
    assert (by_peft < 1e-5) == peft_reads
    assert (by_transformers < 1e-5) == transformers_reads
EOF
