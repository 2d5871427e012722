#!/usr/bin/env python3
"""Makes the small folders of `tests/fixtures/meta`, as Meta releases Llamas, with torch.save, and what transformers and
tiktoken have of the same models, or checks them.

    python make_meta.py --out DIR      # write them
    python make_meta.py --check DIR    # make them again and compare

    llama1            one file in f16, frequencies in each layer
    llama2            one file in bf16, SentencePiece
    llama2_sharded    the files of two processes in f16, the embedding divided by columns; tensors that share a storage
    tied              one file in f32 without an output
    llama3_2          one file in bf16, an output that shares the embedding's storage; its rope scaling, tiktoken
    llama3_sharded    the files of two processes in bf16, the embedding divided by rows; its rope scaling, tiktoken
    expected.json     their configurations, as `config.json`, and their tokenizers' ids of some texts
    expected.safetensors    logits of transformers
    refused           files that are no dictionaries of plain tensors, have fewer numbers than they say, or another output than
                      their size tells
"""

import argparse
import base64
import filecmp
import json
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import tiktoken
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from make_gguf import CORPUS, TEXTS, WORDS, as_lines, pieces

SIZES = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 8, "norm_eps": 1e-5}
# With rows that can be packed in four bits.
WIDE = {"dim": 64, "n_layers": 1, "multiple_of": 64, "ffn_dim_multiplier": 0.3}
LENGTH = 96
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
# Meta's names, transformers', and the dimension by which processes divide a tensor.
LAYER = {"attention.wq": ("self_attn.q_proj", 0), "attention.wk": ("self_attn.k_proj", 0),
         "attention.wv": ("self_attn.v_proj", 0), "attention.wo": ("self_attn.o_proj", 1),
         "feed_forward.w1": ("mlp.gate_proj", 0), "feed_forward.w2": ("mlp.down_proj", 1),
         "feed_forward.w3": ("mlp.up_proj", 0), "attention_norm": ("input_layernorm", None),
         "ffn_norm": ("post_attention_layernorm", None)}


# Texts in which many pairs of a few words can be joined.
RANDOM = random.Random(0)
MORE = ["".join(RANDOM.choices(["he", "l", "lo", "o", " ", "wor", "ld", "1", "\n", "'", "é"], k=20)) for _ in range(20)]


class Holder:
    """What only Python could make a dictionary of."""

    def __init__(self):
        self.weight = torch.zeros(2)


def names(params, embedding, tied):
    """All tensors: Meta's name, transformers' and the dimension."""
    yield "tok_embeddings.weight", "model.embed_tokens.weight", embedding
    yield "norm.weight", "model.norm.weight", None
    if not tied:
        yield "output.weight", "lm_head.weight", 0
    for layer in range(params["n_layers"]):
        for meta, (hf, dim) in LAYER.items():
            yield f"layers.{layer}.{meta}.weight", f"model.layers.{layer}.{hf}.weight", dim


def interleaved(weight, heads):
    """Rows of q and k by neighbouring pairs, of rows half a head apart."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def words():
    """Every byte in the order of the released files, and words of the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS], trainer)
    shown = [byte for byte in range(256) if chr(byte).isprintable() and byte != 32]
    order = shown + [byte for byte in range(256) if byte not in shown]
    characters = {chr(byte) if byte in shown else chr(256 + order.index(byte) - len(shown)): byte for byte in order}
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    joined = [word for word in sorted(vocab, key=vocab.get) if len(word) > 1]
    return [bytes([byte]) for byte in order] + [bytes(characters[c] for c in word) for word in joined]


def tiktoken_file(words):
    return "".join(f"{base64.b64encode(word).decode()} {rank}\n" for rank, word in enumerate(words))


def seeded(config, dtype):
    """A model whose numbers a file of this type has exactly, large enough that attention looks at positions."""
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.25 if parameter.ndim > 1 else 0.1
            values = scale * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1)
            parameter.copy_(values.to(dtype).float())
    return model


def shards(model, params, count, embedding, dtype, share, inner_rope, has_output):
    """What each process has of the model."""
    weights = model.state_dict()
    heads = {"wq": params["n_heads"], "wk": params["n_kv_heads"]}
    parts = [{} for _ in range(count)]
    for meta, hf, dim in names(params, embedding, model.config.tie_word_embeddings):
        weight = weights[hf].to(dtype)
        if meta.split(".")[-2] in heads:
            weight = interleaved(weight, heads[meta.split(".")[-2]])
        for part, value in zip(parts, [weight] * count if dim is None else weight.chunk(count, dim)):
            part[meta] = value.contiguous().clone()
    for part in parts:
        head_dim = params["dim"] // params["n_heads"]
        part["rope.freqs"] = (1.0 / 1e4 ** (torch.arange(0, head_dim, 2) / head_dim)).to(dtype)
        for layer in range(params["n_layers"] if inner_rope else 0):
            part[f"layers.{layer}.attention.inner_attention.rope.freqs"] = part["rope.freqs"].clone()
        if has_output and model.config.tie_word_embeddings:
            part["output.weight"] = part["tok_embeddings.weight"]
    return [shared(part) for part in parts] if share else parts


def shared(part):
    """The same tensors as views of one storage, as the files of Llama 1 and 2 have them."""
    flat = torch.cat([value.flatten() for value in part.values()])
    ends = torch.tensor([value.numel() for value in part.values()]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return {name: flat[start:end].view(value.shape) for (name, value), start, end in zip(part.items(), starts, ends)}


def make(folder):
    expected, logits = {}, {}

    def case(name, params, tokenizer, encode, vocab_size, dtype, count, embedding, share=False, tied=False,
             inner_rope=False, has_output=False, **rest):
        inner = 2 * 4 * params["dim"] // 3
        inner = -(-int(inner * params.get("ffn_dim_multiplier", 1)) // params["multiple_of"]) * params["multiple_of"]
        config = LlamaConfig(
            vocab_size=vocab_size, hidden_size=params["dim"], intermediate_size=inner,
            num_hidden_layers=params["n_layers"], num_attention_heads=params["n_heads"],
            num_key_value_heads=params["n_kv_heads"], rms_norm_eps=params["norm_eps"], tie_word_embeddings=tied, **rest)
        model = seeded(config, dtype)
        (folder / name).mkdir()
        (folder / name / "params.json").write_text(json.dumps(params) + "\n")
        (folder / name / "tokenizer.model").write_bytes(tokenizer)
        for number, part in enumerate(shards(
                model, params, count, embedding, dtype, share, inner_rope, has_output)):
            torch.save(part, folder / name / f"consolidated.{number:02}.pth")
        ids = torch.arange(LENGTH).mul(7).remainder(vocab_size)[None]
        with torch.no_grad():
            logits[name] = model(ids).logits[0, -2:].clone()
        expected[name] = {"config": config.to_dict(), "ids": [[text, encode(text)] for text in TEXTS]}

    model = pieces()
    piece = {"tokenizer": model.serialized_model_proto(), "encode": model.encode, "vocab_size": model.GetPieceSize()}
    old = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "max_position_embeddings": 4096}
    oldest = old | {"max_position_embeddings": 2048}
    case("llama1", SIZES | {"n_layers": 1, "norm_eps": 1e-6, "vocab_size": -1}, dtype=torch.float16, count=1, embedding=1,
         inner_rope=True, **piece, **oldest)
    case("llama2", SIZES | WIDE | {"vocab_size": -1}, dtype=torch.bfloat16, count=1, embedding=1, **piece, **old)
    case("llama2_sharded", SIZES | {"vocab_size": -1, "ffn_dim_multiplier": 1.3}, dtype=torch.float16, count=2,
         embedding=1, share=True, **piece, **old)
    case("tied", SIZES | {"n_layers": 1}, dtype=torch.float32, count=1, embedding=1, tied=True, **piece, **old)

    ranks = words()
    pattern = WORDS % "{1,3}"
    encoding = tiktoken.Encoding("words", pat_str=pattern, mergeable_ranks={w: i for i, w in enumerate(ranks)},
                                 special_tokens={})
    begin = len(ranks)
    llama3 = {"vocab_size": begin + 256, "rope_theta": 500000.0, "use_scaled_rope": True}
    words_of_it = {"tokenizer": tiktoken_file(ranks).encode(), "encode": encoding.encode_ordinary, "vocab_size": begin + 256}
    new = {"rope_parameters": LLAMA3, "max_position_embeddings": 131072, "bos_token_id": begin,
           "eos_token_id": [begin + 1, begin + 8, begin + 9]}
    case("llama3_2", SIZES | {"n_layers": 1} | llama3, dtype=torch.bfloat16, count=1, embedding=0, tied=True,
         has_output=True, **words_of_it, **new)
    case("llama3_sharded", SIZES | llama3, dtype=torch.bfloat16, count=2, embedding=0, **words_of_it, **new)

    expected["llama3_sharded"]["ids"] += [[text, encoding.encode_ordinary(text)] for text in MORE]
    (folder / "expected.json").write_text(as_lines(expected))
    (folder / "refused").mkdir()
    for name, value in {"class": Holder(), "class_inside": {"norm.weight": Holder()}, "list": [torch.zeros(2)],
                        "norm_alone": {"norm.weight": torch.zeros(64)},
                        "integers": {"norm.weight": torch.zeros(2, dtype=torch.int8)},
                        "repeated": {"norm.weight": torch.zeros(1).expand(2**12)},
                        "empty": {"norm.weight": torch.zeros(0, 2**40)}}.items():
        torch.save(value, folder / "refused" / f"{name}.pth")
    # An output that begins one row after the embedding, in the same storage.
    part = torch.load(folder / "llama3_2/consolidated.00.pth")
    embedding = part["tok_embeddings.weight"]
    flat = torch.cat([embedding, embedding[:1]])
    part |= {"tok_embeddings.weight": flat[:-1], "output.weight": flat[1:]}
    torch.save(part, folder / "refused/other_output.pth")
    save_file(logits, folder / "expected.safetensors")


def check(folder, again):
    files = [str(path.relative_to(again)) for path in again.rglob("*") if path.is_file()]
    files.remove("expected.safetensors")
    _, mismatch, errors = filecmp.cmpfiles(folder, again, files, shallow=False)
    found, logits = [load_file(path / "expected.safetensors") for path in (folder, again)]
    # Processors add in orders of their own.
    off = [name for name, value in logits.items() if not torch.allclose(value, found[name], atol=1e-5)]
    if mismatch or errors or off:
        sys.exit(f"made otherwise today: {', '.join(mismatch + errors + off)}")


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
        check(args.check, Path(again))


if __name__ == "__main__":
    main()
