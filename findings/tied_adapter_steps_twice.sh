#!/usr/bin/env bash
# PEFT 0.21.2: with ensure_weight_tying the one adapter of embedding and head is trained by two steps in one.
#
# The head's factors are parameters of their own in the memory of the embedding's. Each gets the gradient of its own use,
# and the optimizer has moments for each: where the gradients agree, AdamW moves a number twice as far as its rate, and
# where they differ hardly at all. One shared parameter would get the sum of the gradients.
#
# Seen (one step of AdamW, rate 0.001, on lora_embedding_A):
#   one parameter: False, one memory: True
#   the first step moves a number by up to 0.0020
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
RATE = 1e-3
IDS = torch.arange(1, 9)[None]
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.1))
model = get_peft_model(model, LoraConfig(
    task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["embed_tokens"], ensure_weight_tying=True))
of_embedding = model.base_model.model.model.embed_tokens.lora_embedding_A["default"]
of_head = model.base_model.model.lm_head.lora_B["default"].weight
shares = of_embedding.data_ptr() == of_head.data_ptr()
print(f"one parameter: {of_embedding is of_head}, one memory: {shares}")
assert shares and of_embedding is not of_head
before = of_embedding.detach().clone()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
model(input_ids=IDS, labels=IDS).loss.backward()
optimizer.step()
moved = (of_embedding.detach() - before).abs().max().item()
print(f"the first step moves a number by up to {moved:.4f}")
assert 1.9 * RATE < moved < 2.1 * RATE
EOP
