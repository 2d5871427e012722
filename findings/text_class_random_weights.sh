#!/usr/bin/env bash
# transformers 5.23.0: `Gemma3ForCausalLM.from_pretrained` of a folder for text and images finds the text configuration
# in it and makes every weight random. `Qwen3_5ForCausalLM` reads the weights of such a folder.
#
# A report in the log has each weight as MISSING, and those of the folder as UNEXPECTED, which "can be ignored". Nothing
# fails.
#
# Seen (the same text to the model that was saved and to what was read):
#   Gemma3ForCausalLM: 29 of 29 weights random, the logits differ by 14.9
#   Qwen3_5ForCausalLM: 0 of 25 weights random, the logits differ by 0.0
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
from transformers import (
    Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Qwen3_5Config, Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration)

TEXT = dict(vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=64, pad_token_id=0, initializer_range=0.3)
IDS = torch.arange(24)[None]
gemma = Gemma3Config(
    text_config=TEXT, mm_tokens_per_image=4, vision_config=dict(
        hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14))
qwen = Qwen3_5Config(
    text_config={**TEXT, "layer_types": ["full_attention"] * 2}, tie_word_embeddings=False, vision_config=dict(
        hidden_size=32, intermediate_size=16, depth=1, num_heads=2, out_hidden_size=64, num_position_embeddings=16))


def read(Whole, Text, config):
    torch.manual_seed(0)
    saved = Whole(config).eval()
    saved.save_pretrained(Text.__name__)
    model, info = Text.from_pretrained(Text.__name__, output_loading_info=True)
    missing, count = len(info["missing_keys"]), len(model.state_dict())
    with torch.no_grad():
        change = (model.eval()(IDS).logits - saved(IDS).logits).abs().max().item()
    print(f"{Text.__name__}: {missing} of {count} weights random, the logits differ by {change:.1f}")
    return missing, count, change


missing, count, change = read(Gemma3ForConditionalGeneration, Gemma3ForCausalLM, gemma)
assert missing == count and change > 0.1
missing, count, change = read(Qwen3_5ForConditionalGeneration, Qwen3_5ForCausalLM, qwen)
assert missing == 0 and change < 1e-4
EOP
