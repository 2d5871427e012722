#!/usr/bin/env bash
# transformers 5.23.0: of an OLMo 3 configuration in the style of transformers 4, `rope_theta` reaches the layers of full
# attention only. Those of a sliding window, three of four, rotate by 500000, the class's default, silently.
#
# In transformers 4.57 `rope_theta` is that of all layers; only `rope_scaling` is for full attention alone. A file that says
# 500000 is read right by chance, one that says another number is read as another model.
#
# Seen:
#   config.json says 10000; full_attention has 10000, sliding_attention 500000
#   sliding layers: logits of rope_theta 10000 and 1000000 differ by 0
#   full layers: by 5.4
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
import json
from pathlib import Path

import torch
from transformers import AutoConfig, Olmo3ForCausalLM

LAYERS = 2


def read(theta, kind):
    Path("config.json").write_text(json.dumps({
        "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "transformers_version": "4.57.1",
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "max_position_embeddings": 128, "sliding_window": 64, "layer_types": [kind] * LAYERS,
        "rope_theta": theta, "rope_scaling": None}))
    return AutoConfig.from_pretrained(".")


def logits(theta, kind):
    torch.manual_seed(0)
    model = Olmo3ForCausalLM(read(theta, kind)).eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    with torch.no_grad():
        return model(torch.arange(48)[None]).logits


def difference(kind):
    return (logits(10000, kind) - logits(1000000, kind)).abs().max().item()


found = {kind: rope["rope_theta"] for kind, rope in read(10000, "full_attention").rope_parameters.items()}
print(f"config.json says 10000; full_attention has {found['full_attention']}, "
      f"sliding_attention {found['sliding_attention']:.0f}")
sliding, full = difference("sliding_attention"), difference("full_attention")
print(f"sliding layers: logits of rope_theta 10000 and 1000000 differ by {sliding:.2g}")
print(f"full layers: by {full:.2g}")
assert found == {"full_attention": 10000, "sliding_attention": 500000}
assert sliding == 0 and full > 0.01
EOP
