#!/usr/bin/env bash
# transformers 5.23.0: of a Phi-3 configuration, `original_max_position_embeddings` in `rope_parameters`, where the
# documentation of rope has it, is replaced by 4096, silently.
#
# Phi-3 has a setting of the same name outside, with 4096 by default, which counts even if the file does not have it. So
# a model that was trained on another length switches to the long factors of `longrope` at the wrong one.
#
# Seen (rope_parameters say 32; the change of the logits of 48 tokens by other long factors):
#   llama: the length is 32, the logits change by 13.3
#   phi3: the length is 4096, the logits change by 0.0
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
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM


def run(Config, Model, long_factor):
    torch.manual_seed(0)
    model = Model(Config(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, initializer_range=0.3,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32,
            "short_factor": [1.0] * 8, "long_factor": [long_factor] * 8, "factor": 2.0})).eval()
    with torch.no_grad():
        logits = model(torch.arange(48)[None]).logits
    return model.config.rope_parameters["original_max_position_embeddings"], logits


def measure(Config, Model):
    (length, one), (_, other) = (run(Config, Model, long_factor) for long_factor in [2.0, 8.0])
    return length, (one - other).abs().max().item()


llama, phi3 = measure(LlamaConfig, LlamaForCausalLM), measure(Phi3Config, Phi3ForCausalLM)
for family, (length, change) in [("llama", llama), ("phi3", phi3)]:
    print(f"{family}: the length is {length}, the logits change by {change:.1f}")
assert llama[0] == 32 and llama[1] > 0.1 and phi3 == (4096, 0)
EOP
