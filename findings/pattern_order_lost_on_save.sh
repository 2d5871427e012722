#!/usr/bin/env bash
# PEFT 0.21.2: saving and loading an adapter changes which entry of alpha_pattern counts.
#
# Where several keys of a pattern match a module, the first one counts. `save_pretrained` sorts the keys,
# so after loading another one may be the first. The adapter then has another scale, without an error or
# a warning. (The same order of rank_pattern makes a folder that does not load.)
#
# Seen:
#   before: keys ['self_attn.q_proj', 'q_proj'], scale 0.5
#   loaded: keys ['q_proj', 'self_attn.q_proj'], scale 4.0
#   logits differ by 0.10
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


def show(when, model):
    keys = list(model.peft_config["default"].alpha_pattern)
    scale = model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"]
    print(f"{when}: keys {keys}, scale {scale}")
    return scale


settings = LoraConfig(
    task_type="CAUSAL_LM", r=8, lora_alpha=8, target_modules=["q_proj"],
    alpha_pattern={"self_attn.q_proj": 4, "q_proj": 32})
model = randomize(get_peft_model(base(), settings))
model.save_pretrained("adapter")
loaded = PeftModel.from_pretrained(base(), "adapter").eval()
assert show("before", model) == 0.5
assert show("loaded", loaded) == 4.0
print(f"logits differ by {difference(model, loaded):.2f}")
assert difference(model, loaded) > 0.01
EOF
