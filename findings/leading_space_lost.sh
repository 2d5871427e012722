#!/usr/bin/env bash
# transformers 5.23.0: a `LlamaTokenizer` that is read from a `tokenizer.model` alone gives other ids than SentencePiece to
# texts that begin with spaces, silently: one space fewer, so that " the cat" has the ids of "the cat".
#
# SentencePiece puts a space before each text (`add_dummy_prefix`). The tokenizer that transformers makes of the file puts
# one only before a text that begins with none; the `tokenizer.json` in the releases of such models puts one always. With
# `legacy` true or false it is the same.
#
# The model is trained on the spot with the settings of Llama 2's: BPE with bytes for what is unknown, no normalisation.
#
# Seen:
#   ' the cat'   SentencePiece ['▁▁', 't', 'he', '▁cat'], transformers ['▁the', '▁cat']
#   '  the cat'  SentencePiece ['▁▁', '▁the', '▁cat'], transformers ['▁▁', 't', 'he', '▁cat']
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet \
        transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
fi
cd "$work"
export HF_HUB_OFFLINE=1 # the model is made here
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
import json
from pathlib import Path

import sentencepiece
from transformers import AutoTokenizer

texts = ["the cat sat on the mat", "  the cat sat\n    on  a mat"] * 50
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts), model_prefix="tokenizer", model_type="bpe", vocab_size=290, byte_fallback=True,
    add_dummy_prefix=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
    normalization_rule_name="identity", split_digits=True)
piece = sentencepiece.SentencePieceProcessor(model_file="tokenizer.model")


def read(legacy):
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    Path("tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(".")


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


for tokenizer in (read(legacy=True), read(legacy=False)):
    for text in ("the cat", "the  cat", "the cat "):
        assert ids(tokenizer, text) == piece.encode(text)
    for text in (" the cat", "  the cat"):
        expected, found = piece.encode(text), ids(tokenizer, text)
        print(f"{text!r:12} SentencePiece {piece.id_to_piece(expected)}, "
              f"transformers {tokenizer.convert_ids_to_tokens(found)}")
        assert found == piece.encode(text[1:]) != expected
    assert ids(tokenizer, " the cat") == ids(tokenizer, "the cat")
EOP
