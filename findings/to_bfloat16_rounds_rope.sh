#!/usr/bin/env bash
# transformers 5.23.0: a folder read with dtype=torch.bfloat16, and read in f32 and moved by `.to(torch.bfloat16)`, are
# two models, though all weights are equal.
#
# The frequencies of rope are no weight: reading leaves them in f32, and `.to` rounds them, so that the angles are wrong
# where the position is high. The Trainer moves a model so for bf16_full_eval.
#
# Seen (weights all equal; 2000 tokens):
#   frequencies: torch.float32 and torch.bfloat16
#   an angle at the last position differs by up to 0.9
#   the logits of the first 8 tokens differ by 0.3, those of the last 8 by 8.7
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
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
import torch
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH = 2000
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=2048, initializer_range=0.3, dtype=torch.bfloat16)).save_pretrained("model")
ids = torch.randint(0, 64, (1, LENGTH))
read = LlamaForCausalLM.from_pretrained("model", dtype=torch.bfloat16).eval()
moved = LlamaForCausalLM.from_pretrained("model", dtype=torch.float32).to(torch.bfloat16).eval()
weights = moved.state_dict()
assert all(torch.equal(value, weights[name]) for name, value in read.state_dict().items())
a, b = read.model.rotary_emb.inv_freq, moved.model.rotary_emb.inv_freq
print(f"frequencies: {a.dtype} and {b.dtype}")
angle = ((a - b.float()).abs().max() * (LENGTH - 1)).item()
print(f"an angle at the last position differs by up to {angle:.1f}")
with torch.no_grad():
    change = (read(ids).logits.float() - moved(ids).logits.float()).abs()[0]
first, last = change[:8].max().item(), change[-8:].max().item()
print(f"the logits of the first 8 tokens differ by {first:.1f}, those of the last 8 by {last:.1f}")
assert (a.dtype, b.dtype) == (torch.float32, torch.bfloat16)
assert angle > 0.5 and last > 5 * first
EOP
