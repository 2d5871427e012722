#!/usr/bin/env bash
# PEFT 0.21.2: merging trained token rows of a tied head changes the embedding too, silently.
#
# With tied embeddings, trainable_token_indices may name other rows for the head than for the embedding, and
# the two are then trained apart. merge_and_unload writes both into the one weight that they share: the
# merged model has the head's rows as embeddings and the other way round. There is no warning (for a LoRA
# on a tied head there is one), and the saved model stays tied.
#
# Seen:
#   adapter changes the logits by 2.79, merged model differs from it by 8.66, tied: True, warnings: 0
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
"$PYTHON" -W ignore - <<'EOF'
import warnings

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.disable_progress_bar()
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    tie_word_embeddings=True)
LlamaForCausalLM(config).save_pretrained("base")
ids = torch.arange(10).view(2, 5)


def base():
    return LlamaForCausalLM.from_pretrained("base", dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=ids).logits


def difference(model, other):
    return (logits(model) - logits(other)).abs().max().item()


def randomize(model):
    """Trained tensors of a size that counts."""
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn_like(p)
    return model.eval()


settings = LoraConfig(
    task_type="CAUSAL_LM", r=4, target_modules=["q_proj"],
    trainable_token_indices={"embed_tokens": [1, 2], "lm_head": [3, 4]})
model = randomize(get_peft_model(base(), settings))
expected = logits(model)
effect = (expected - logits(base())).abs().max().item()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    merged = model.merge_and_unload()
error = (logits(merged) - expected).abs().max().item()
told = [w for w in caught if "tie" in str(w.message)]
print(f"adapter changes the logits by {effect:.2f}, merged model differs from it by {error:.2f}, "
      f"tied: {merged.config.tie_word_embeddings}, warnings: {len(told)}")
assert error > 0.1 and merged.config.tie_word_embeddings and not told
EOF
