#!/usr/bin/env bash
# transformers 5.23.0: the mask of the assistant's tokens leaves out the last bytes of an answer that ends in a letter of
# several tokens.
#
# `apply_chat_template(.., return_assistant_tokens_mask=True)` marks what a template writes between `{% generation %}` and
# `{% endgeneration %}`. Where a byte-level tokenizer has several tokens for the last letter (an accent, an emoji, most
# scripts), the first of them is marked alone: a model that is trained on the mask is not taught the rest of the letter.
#
# Seen (a tokenizer with a token a byte; the mask of the tokens of the answer):
#   "ab": [1, 1]
#   "é": [1, 0]
#   "aé!": [1, 1, 1, 1]
#   "a🙂": [1, 1, 0, 0, 0]
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet transformers==5.23.0 jinja2==3.1.6
fi
cd "$work"
export HF_HUB_OFFLINE=1 # the tokenizer is made here
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
inner = Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(letters)}, merges=[]))
inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
inner.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
tokenizer.chat_template = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{% endgeneration %}{% else %}{{ message.content }}: {% endif %}{% endfor %}")


def mask(answer):
    chat = [{"role": "user", "content": "Say"}, {"role": "assistant", "content": answer}]
    out = tokenizer.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    found = out["assistant_masks"][len("Say: "):]
    assert len(found) == len(answer.encode()) and not any(out["assistant_masks"][:len("Say: ")])
    return found


expected = {"ab": [1, 1], "é": [1, 0], "aé!": [1, 1, 1, 1], "a🙂": [1, 1, 0, 0, 0]}
for answer, seen in expected.items():
    print(f'"{answer}": {mask(answer)}')
    assert mask(answer) == seen
EOP
