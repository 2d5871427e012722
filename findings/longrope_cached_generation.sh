#!/usr/bin/env bash
# transformers 5.23.0: a Llama with rope_type `longrope` generates other tokens with a cache than without one.
#
# Where the text grows beyond original_max_position_embeddings, all frequencies change, but keys in the cache have the
# old ones. Phi-3 drops its cache there and begins a new one; Llama, which takes the same settings, does not.
#
# Seen (8 tokens and 30 more, original_max_position_embeddings 16):
#   llama: the first 9 new tokens are those without a cache
#   phi3: the first 30 new tokens are those without a cache
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

ROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
        "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
ids = torch.randint(0, 64, (1, 8), generator=torch.Generator().manual_seed(1))


def equal_tokens(Config, Model):
    torch.manual_seed(0)
    model = Model(Config(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=dict(ROPE),
        pad_token_id=0, bos_token_id=None, eos_token_id=None, initializer_range=0.3)).eval()
    cached, plain = (
        model.generate(ids, max_new_tokens=30, do_sample=False, use_cache=use)[0, 8:] for use in [True, False])
    return int((cached == plain).int().cumprod(0).sum())


llama = equal_tokens(LlamaConfig, LlamaForCausalLM)
phi3 = equal_tokens(Phi3Config, Phi3ForCausalLM)
print(f"llama: the first {llama} new tokens are those without a cache")
print(f"phi3: the first {phi3} new tokens are those without a cache")
assert llama < 30 and phi3 == 30
EOP
