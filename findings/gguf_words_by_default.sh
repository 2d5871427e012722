#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0: a tokenizer that is read from a GGUF file splits words by GPT-2's rule where it does
# not know the rule that the file names in `tokenizer.ggml.pre`, silently. It does not know `smollm`, that of SmolLM2's
# files, in which each digit is a word.
#
# Such a tokenizer is written and read again by `AutoTokenizer.from_pretrained(.., gguf_file=..)`. The tokens are the same,
# the ids of a text with two spaces before a number are not.
#
# Seen:
#   it was: ['a', 'ĠĠ', '1', '2']
#   read:   ['a', 'Ġ', 'Ġ', '1', '2']
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0
fi
cd "$work"
export HF_HUB_OFFLINE=1 # every model is made here
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

TEXT = "a  12"
merges = [("Ġ", "Ġ")]
tokens = ["a", "Ġ", "1", "2", "ĠĠ", "<|endoftext|>"]
vocab = {token: number for number, token in enumerate(tokens)}
was = Tokenizer(models.BPE(vocab, merges))
was.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
was.decoder = decoders.ByteLevel()

out = gguf.GGUFWriter("model.gguf", "llama")
out.add_context_length(64)
out.add_embedding_length(8)
out.add_block_count(1)
out.add_feed_forward_length(8)
out.add_head_count(2)
out.add_head_count_kv(2)
out.add_layer_norm_rms_eps(1e-5)
out.add_rope_freq_base(5e5)
out.add_tokenizer_model("gpt2")
out.add_tokenizer_pre("smollm")
out.add_token_list(tokens)
out.add_token_types([1] * (len(tokens) - 1) + [3])
out.add_token_merges([" ".join(merge) for merge in merges])
out.add_bos_token_id(len(tokens) - 1)
out.add_eos_token_id(len(tokens) - 1)
out.add_tensor("token_embd.weight", np.zeros((len(tokens), 8), np.float32))
out.write_header_to_file()
out.write_kv_data_to_file()
out.write_tensors_to_file()
out.close()

read = AutoTokenizer.from_pretrained(".", gguf_file="model.gguf")
expected = was.encode(TEXT).tokens
found = read.convert_ids_to_tokens(read.encode(TEXT, add_special_tokens=False))
print(f"it was: {expected}\nread:   {found}")
assert expected == ["a", "ĠĠ", "1", "2"] and found == ["a", "Ġ", "Ġ", "1", "2"]
EOP
