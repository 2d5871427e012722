#!/usr/bin/env bash
# PEFT 0.21.2: with PiSSA or OLoRA on the head of a model with tied embeddings, a new adapter changes the model.
#
# Both take a part off the weight that the adapter then has, so that nothing changes at the start. The head's weight is
# the embedding's too: the tokens' vectors lose that part as well, and no adapter gives it back to them.
#
# Seen (largest change of the logits by an adapter that has not been trained):
#   olora on q_proj: 0.0000
#   olora on lm_head: 1.9046
#   pissa on q_proj: 0.0000
#   pissa on lm_head: 1.5642
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
IDS = torch.arange(1, 9)[None]


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.1))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


for init in ("olora", "pissa"):
    for name, is_changed in (("q_proj", False), ("lm_head", True)):
        settings = LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=[name], init_lora_weights=init)
        change = (logits(get_peft_model(base(), settings)) - logits(base())).abs().max().item()
        print(f"{init} on {name}: {change:.4f}")
        assert (change > 0.5) == is_changed and (change < 1e-4) != is_changed
EOP
