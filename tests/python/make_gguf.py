#!/usr/bin/env python3
"""Makes the small GGUF files of `tests/fixtures/gguf` with the `gguf` package, and what transformers has of the same
models, or checks them.

    python make_gguf.py --out DIR      # write them
    python make_gguf.py --check DIR    # make them again and compare

    llama.gguf    Llama 3's kind: tied, its rope scaling, weights of several kinds, byte-level BPE
    qwen2.gguf    with biases, byte-level BPE
    mistral.gguf  untied, a SentencePiece model
    gemma3.gguf   norms by 1 + w, two rotary embeddings, a SentencePiece model with symbols of the user's
    expected.json their configurations, as `config.json`, and their tokenizers' ids of some texts
"""

import argparse
import filecmp
import io
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import gguf
import numpy as np
import sentencepiece
from gguf.quants import quantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from gguf_files import ARCHITECTURES, add_family, add_rope, names_of

FILES = ["llama.gguf", "qwen2.gguf", "mistral.gguf", "gemma3.gguf", "expected.json"]
SYMBOLS = ["\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "low"]
CORPUS = ["hello hello world, we'll count 1234 and 12 of them\n", "the hollow yellow wheel\n\n", "  he held 3.14, he'd say"]
TEXTS = [*CORPUS, "", " ", "   hello", "hello\n\n\nworld", "1234567", "he'LL", "e\u0301", "<|end|>hello<|end|>", "world  "]
CHARACTERS = sorted(set("".join(TEXTS)))
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
# What transformers' files of Llama 3 and Qwen2 split by.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KINDS = {"attn_q": "Q4_1", "attn_k": "Q5_0", "attn_v": "F16", "attn_output": "BF16", "ffn_gate": "Q4_0", "ffn_up": "Q5_1"}


def byte_level(digits, ignore_merges, normalizer):
    """A tokenizer of what the texts need, and of a token that ends them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS % digits), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=72, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = model["vocab"] | {"<|end|>": len(model["vocab"])}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer.model = models.BPE(vocab, merges, ignore_merges=ignore_merges)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.encode_special_tokens = True
    return tokenizer


def add_byte_level(out, tokenizer, pre):
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.CONTROL if token == "<|end|>" else gguf.TokenType.NORMAL for token in tokens])
    out.add_token_merges([" ".join(merge) for merge in model["merges"]])
    out.add_chat_template(TEMPLATE)


def pieces(**settings):
    """A SentencePiece model of the texts, without bytes, for which the file would be too large."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=64, hard_vocab_limit=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=1.0,
        minloglevel=2, num_threads=1, **settings)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def add_pieces(out, model, symbols=()):
    ids = range(model.GetPieceSize())
    out.add_tokenizer_model("llama")
    out.add_token_list([model.IdToPiece(token) for token in ids])
    out.add_token_scores([model.GetScore(token) for token in ids])
    out.add_token_types([
        gguf.TokenType.UNKNOWN if model.IsUnknown(token) else
        gguf.TokenType.CONTROL if model.IsControl(token) else
        gguf.TokenType.USER_DEFINED if model.IdToPiece(token) in symbols else gguf.TokenType.NORMAL for token in ids])


def add_symbols(out, model):
    """Of a model that puts no space before a text."""
    add_pieces(out, model, SYMBOLS)
    out.add_add_space_prefix(False)


def shapes(config):
    """The weights by transformers' names."""
    dim, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = {"self_attn.q_proj": [q, dim], "self_attn.k_proj": [kv, dim], "self_attn.v_proj": [kv, dim],
             "self_attn.o_proj": [dim, q], "mlp.gate_proj": [inner, dim], "mlp.up_proj": [inner, dim],
             "mlp.down_proj": [dim, inner], "input_layernorm": [dim], "post_attention_layernorm": [dim]}
    if config.model_type == "gemma3_text":
        layer |= {"self_attn.q_norm": [config.head_dim], "self_attn.k_norm": [config.head_dim],
                  "pre_feedforward_layernorm": [dim], "post_feedforward_layernorm": [dim]}
    yield "model.embed_tokens.weight", [config.vocab_size, dim]
    for name, shape in layer.items():
        yield f"model.layers.0.{name}.weight", shape
        if config.model_type == "qwen2" and name.split(".")[-1] in ("q_proj", "k_proj", "v_proj"):
            yield f"model.layers.0.{name}.bias", shape[:1]
    yield "model.norm.weight", [dim]
    if not config.tie_word_embeddings:
        yield "lm_head.weight", [config.vocab_size, dim]


def write(path, config, add_tokenizer):
    out = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_rope(out, config)
    add_family(out, config)
    out.add_bos_token_id(config.bos_token_id)
    out.add_eos_token_id(config.eos_token_id)
    if config.pad_token_id is not None:
        out.add_pad_token_id(config.pad_token_id)
    add_tokenizer(out)
    rng, names = np.random.default_rng(0), names_of(config)
    for key, shape in shapes(config):
        name = names.get_name(key, (".weight", ".bias"))
        kind = KINDS.get(name.split(".")[-2], "Q8_0") if len(shape) > 1 else "F32"
        kind = gguf.GGMLQuantizationType[kind]
        value = rng.standard_normal(shape, dtype=np.float32)
        out.add_tensor(name, quantize(value, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def as_lines(expected):
    """JSON with a line for each configuration and text."""
    def lines(case):
        yield f'"config": {json.dumps(case["config"], sort_keys=True)}'
        yield '"ids": [\n' + ",\n".join(map(json.dumps, case["ids"])) + "\n]"
    cases = [f'"{name}": {{\n' + ",\n".join(lines(case)) + "\n}" for name, case in expected.items()]
    return "{\n" + ",\n".join(cases) + "\n}\n"


def make(folder):
    expected = {}

    def case(name, config, add_tokenizer, encode):
        write(folder / f"{name}.gguf", config, add_tokenizer)
        expected[name] = {"config": config.to_dict(), "ids": [[text, encode(text)] for text in TEXTS]}

    llama3 = byte_level("{1,3}", True, None)
    end = llama3.token_to_id("<|end|>")
    config = LlamaConfig(**SIZES, vocab_size=end + 1, rope_parameters=LLAMA3, tie_word_embeddings=True,
                         max_position_embeddings=131072, bos_token_id=end, eos_token_id=end, rms_norm_eps=1e-5)
    case("llama", config, lambda out: add_byte_level(out, llama3, "llama-bpe"), lambda text: llama3.encode(text).ids)

    qwen2 = byte_level("", False, normalizers.NFC())
    end = qwen2.token_to_id("<|end|>")
    config = Qwen2Config(**SIZES, vocab_size=end + 1, max_position_embeddings=32768, bos_token_id=end, eos_token_id=end,
                         rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    case("qwen2", config, lambda out: add_byte_level(out, qwen2, "qwen2"), lambda text: qwen2.encode(text).ids)

    model = pieces()
    config = MistralConfig(**SIZES, vocab_size=model.GetPieceSize(), max_position_embeddings=4096, sliding_window=None,
                           rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, rms_norm_eps=1e-6)
    case("mistral", config, lambda out: add_pieces(out, model), model.encode)

    model = pieces(user_defined_symbols=SYMBOLS, add_dummy_prefix=False)
    config = Gemma3TextConfig(**SIZES, vocab_size=model.GetPieceSize(), query_pre_attn_scalar=8, sliding_window=512,
                              rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2, pad_token_id=0, rope_parameters={
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}})
    case("gemma3", config, lambda out: add_symbols(out, model), model.encode)
    (folder / "expected.json").write_text(as_lines(expected))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="the folder to write them to")
    action.add_argument("--check", type=Path, help="the folder that has them")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        return make(args.out)
    with tempfile.TemporaryDirectory() as again:
        make(Path(again))
        _, mismatch, errors = filecmp.cmpfiles(args.check, again, FILES, shallow=False)
    if mismatch or errors:
        sys.exit(f"made otherwise today: {', '.join(mismatch + errors)}")


if __name__ == "__main__":
    main()
