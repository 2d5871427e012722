#!/usr/bin/env bash
# transformers 5.23.0: a Llama whose files name no end-of-text token has one by its class, but generation does not
# stop at it.
#
# With no eos_token_id in config.json and no generation_config.json, config.eos_token_id is the class's default, 2.
# The generation configuration is made from what the file says, not from the class, so it has no end.
#
# Seen:
#   config.eos_token_id: 2, generation_config.eos_token_id: None
#   tokens after the end-of-text token that the model always predicts: 11
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet torch==2.15.0 transformers==5.23.0 safetensors==0.8.0
fi
cd "$work"
export HF_HUB_OFFLINE=1 # every model is made here
"$PYTHON" -W ignore - <<'EOP'
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2))
for p in model.parameters():
    p.data.zero_()
model.model.norm.weight.data.fill_(1.0)
model.model.embed_tokens.weight.data.fill_(1.0)
model.lm_head.weight.data[2] = 1.0  # so that token 2 is always the likeliest
model.save_pretrained("model")
path = Path("model/config.json")
config = json.loads(path.read_text())
config.pop("eos_token_id", None)
path.write_text(json.dumps(config))
Path("model/generation_config.json").unlink()
model = AutoModelForCausalLM.from_pretrained("model").eval()
ends = model.config.eos_token_id, model.generation_config.eos_token_id
print(f"config.eos_token_id: {ends[0]}, generation_config.eos_token_id: {ends[1]}")
out = model.generate(torch.tensor([[1, 3]]), max_new_tokens=12, do_sample=False)[0, 2:].tolist()
after = len(out) - out.index(2) - 1
print(f"tokens after the end-of-text token that the model always predicts: {after}")
assert ends == (2, None) and after == 11
EOP
