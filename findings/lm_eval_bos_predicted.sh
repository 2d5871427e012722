#!/usr/bin/env bash
# lm-eval 0.4.13: of a text's likelihood with a tokenizer that begins with BOS, that of a BOS after a BOS is a part.
#
# For a perplexity, `loglikelihood_rolling` encodes the text, which puts BOS before it, and puts the prefix token, BOS again,
# before that. So the first token that the model is asked for is BOS itself, which no text has there. The number is the worse
# the shorter the text and the surer the model; tokenizers without BOS are not affected.
#
# Seen (a random Llama, a text of 3 tokens):
#   without BOS in the tokenizer: the likelihood of 3 tokens
#   with BOS: that of 4, BOS after BOS the first
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet torch==2.15.0 transformers==5.23.0 lm-eval==0.4.13
fi
cd "$work"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 # everything is made here
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = {"<s>": 0, "</s>": 1, "one": 2, "two": 3, "three": 4, "[UNK]": 5}
TEXT = [2, 3, 4]

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3, bos_token_id=0, eos_token_id=1)).eval()


def tokenizer(adds_bos):
    words = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_bos:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def rolling(adds_bos):
    lm = HFLM(pretrained=model, tokenizer=tokenizer(adds_bos), batch_size=1, device="cpu")
    request = Instance("loglikelihood_rolling", {}, ("one two three",), 0)
    return lm.loglikelihood_rolling([request], disable_tqdm=True)[0]


def likelihood(ids):
    """Of all tokens but the first, each after those before it."""
    ids = torch.tensor(ids)
    with torch.no_grad():
        said = model(ids[None, :-1]).logits[0].log_softmax(-1)
    return said.gather(1, ids[1:, None]).sum().item()


of_text, with_bos = likelihood([0, *TEXT]), likelihood([0, 0, *TEXT])
plain, begun = rolling(False), rolling(True)
print(f"without BOS in the tokenizer {plain:.4f}: {of_text:.4f} is that of 3 tokens")
print(f"with BOS {begun:.4f}: {with_bos:.4f} is that of 4, BOS after BOS the first")
assert abs(plain - of_text) < 1e-4 and abs(begun - with_bos) < 1e-4 and abs(of_text - with_bos) > 0.1
EOP
