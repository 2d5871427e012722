#!/usr/bin/env bash
# transformers 5.23.0: with rope_type `dynamic`, a model computes other logits for the same input after a longer one.
#
# The frequencies are those of the longest input so far. They are put back only by an input that is shorter than
# max_position_embeddings. So what a model says of one text depends on the texts before it.
#
# Seen (max_position_embeddings 16, the same 18 tokens each time):
#   after 24 tokens: the logits differ from the first time's by 2.5
#   after 24 tokens, then 16: by 2.5
#   after 24 tokens, then 15: by 0.0
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet torch==2.15.0 transformers==5.23.0
fi
cd "$work"
export HF_HUB_OFFLINE=1 # every model is made here
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=16, initializer_range=0.3,
    rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})).eval()
ids = torch.randint(0, 64, (1, 24))


def logits(length):
    with torch.no_grad():
        return model(ids[:, :length]).logits


first = logits(18)
changes = []
for lengths in [[24], [24, 16], [24, 15]]:
    for length in lengths:
        logits(length)
    changes.append((logits(18) - first).abs().max().item())
print(f"after 24 tokens: the logits differ from the first time's by {changes[0]:.1f}")
print(f"after 24 tokens, then 16: by {changes[1]:.1f}")
print(f"after 24 tokens, then 15: by {changes[2]:.1f}")
assert changes[0] > 0.1 and changes[1] > 0.1 and changes[2] == 0
EOP
