#!/usr/bin/env bash
# transformers 5.23.0: Gemma 3 has the setting `attn_logit_softcapping`, "tanh softcapping on the attention scores" by
# its documentation, and reads it into each layer, but no attention applies it. Gemma 2 applies its own.
#
# Seen (a cap of 0.01, which makes all scores nearly equal):
#   gemma2: the logits change by 4.7
#   gemma3: the logits change by 0.0; its layers say 0.01
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
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

CAP = 0.01


def make(Config, Model, cap):
    torch.manual_seed(0)
    return Model._from_config(Config(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0,
        attn_logit_softcapping=cap, final_logit_softcapping=None), attn_implementation="eager").eval()


def change(Config, Model):
    with torch.no_grad():
        with_cap, without = (make(Config, Model, cap)(torch.arange(24)[None]).logits for cap in [CAP, None])
    return (with_cap - without).abs().max().item()


gemma2 = change(Gemma2Config, Gemma2ForCausalLM)
gemma3 = change(Gemma3TextConfig, Gemma3ForCausalLM)
in_layer = make(Gemma3TextConfig, Gemma3ForCausalLM, CAP).model.layers[0].self_attn.attn_logit_softcapping
print(f"gemma2: the logits change by {gemma2:.1f}")
print(f"gemma3: the logits change by {gemma3:.1f}; its layers say {in_layer}")
assert gemma2 > 0.1 and gemma3 == 0 and in_layer == CAP
EOP
