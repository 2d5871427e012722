#!/usr/bin/env python3
"""Compares what this crate reads of GGUF files with what transformers has of the same models.

    python check_gguf.py path/to/inspect [--llama2 DIR]

`inspect` is this repository's example, built. Configurations: small models of all kinds and families, against their
Hugging Face folders. Tokenizers: SmolLM2's file, where the package that has it is installed (see `smollm2.py`), and Llama 2's
`tokenizer.model` and `tokenizer.json` of DIR, written as a GGUF file. Exits with 1 and says what differs.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import gguf
import torch
import transformers
from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizerFast

import smollm2
from adapter_cases import GGUF_FAMILIES
from adapter_reference import Bases
from check_models import MODELS, SIZES
from gguf_files import write_base

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# A Mistral is a Llama there, and its window is not told; nor is what a config.json holds for other programs.
NOT_TOLD = {"Mistral": ["model_type", "layer_attention"]}
OF_OTHERS = "other_fields"
TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n \n", "\t\t", "\r\n", "a", " a", "a ", "  a  b   c    ", "Hello world", " Hello",
    "HELLO", "it's we'll I'd you've they're I'm THEY'LL don'T", "1", "12", "123", "1234", "12345678901234", "1 2 3", "3.14159",
    "x1y22z333", "½ ¾ ²³", "१२३", "１２３", "日本語のテキスト。", "中文没有空格", "한국어 문장", "🦙", "🤔🦙🤔", "👩‍👩‍👧‍👦", "🇫🇷🇩🇪", "e\u0301", "é",
    "\u2581", "a\u2581b", "\u00a0x\u00a0", "\u200b", "\ufeff", "\u0000", "\u0001\u0002", "<s>", "</s>", "<s>a</s>", "<unk>",
    "<0x0A>", "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|>", "[INST] x [/INST]", "def f(x):\n    return x\n\n\n\ty = 1",
    "https://example.org/a?b=c&d=%20", "a" * 300, " " * 100, "=" * 70, "\n" * 40, "ªµºßẞǆ", "שלום עולם", "مرحبا بالعالم", "ไทย",
    "Ünïcödé", "ﬁ ligature", "a\u0308o\u0327", "!?!?...;;--__", "$100,000.00 + 5% = €3", "C:\\Windows\\x", "\"quotes\" 'single'",
]


def random_texts(count):
    """Pieces of the texts, put together."""
    rng = random.Random(1)
    pieces = [piece for text in TEXTS if text for piece in (text[:5], text[-3:], " " + text[:2])]
    return ["".join(rng.choices(pieces, k=rng.randrange(2, 12))) for _ in range(count)]


class Program:
    def __init__(self, path):
        self.path = path

    def __call__(self, option, path, texts=()):
        run = subprocess.run([self.path, option, path], input=json.dumps(list(texts)), capture_output=True, text=True)
        if run.returncode:
            sys.exit(run.stderr)
        return json.loads(run.stdout)


def configuration(program, folder, name):
    """What differs between the two readings."""
    kind, config_kind, settings = MODELS[name]
    torch.manual_seed(0)
    model = kind(config_kind(**SIZES, **SPECIAL, **settings))
    model.config.save_pretrained(folder)
    write_base(model, folder / "model.gguf")
    expected = program("--model", folder)
    found = program("--model", folder / "model.gguf")
    return {key: (value, found[key]) for key, value in expected.items()
            if value != found[key] and key not in [OF_OTHERS, *NOT_TOLD.get(name, [])]}


def of_family(program, bases, name):
    """What differs between the two readings of a family's model."""
    path = bases.root / "model.gguf"
    write_base(bases.model(name), path)
    expected, found = program("--model", bases.folder(name)), program("--model", path)
    return {key: (value, found[key]) for key, value in expected.items() if value != found[key] and key != OF_OTHERS}


def tokens(program, path, tokenizer, bos):
    """What differs between this crate's tokenizer and transformers', of which `bos` stands before a text."""
    texts = TEXTS + random_texts(3000)
    found = program("--tokenizer", path, texts)
    differences = {}
    for text, ids, decoded in zip(texts, found["ids"], found["decoded"]):
        expected = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        back = tokenizer.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if (ids, decoded) != (expected, back):
            differences[text] = (expected, ids, back, decoded)
    special = {"bos": bos, "eos": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    if tokenizer.pad_token_id is not None:
        special["pad"] = tokenizer.pad_token_id
    special["chat_template"] = tokenizer.chat_template
    differences |= {key: (value, found[key]) for key, value in special.items() if value != found[key]}
    return differences


def write_sentencepiece(model, path):
    """A file that holds nothing but a SentencePiece model's pieces."""
    pieces = SentencePieceProcessor(model_file=str(model))

    def kind(token):
        kinds = {gguf.TokenType.UNKNOWN: pieces.IsUnknown, gguf.TokenType.CONTROL: pieces.IsControl,
                 gguf.TokenType.BYTE: pieces.IsByte, gguf.TokenType.UNUSED: pieces.IsUnused}
        return next((kind for kind, holds in kinds.items() if holds(token)), gguf.TokenType.NORMAL)
    ids = range(pieces.GetPieceSize())
    out = gguf.GGUFWriter(path, "llama")
    out.add_tokenizer_model("llama")
    out.add_token_list([pieces.IdToPiece(token) for token in ids])
    out.add_token_scores([pieces.GetScore(token) for token in ids])
    out.add_token_types([kind(token) for token in ids])
    out.add_bos_token_id(pieces.bos_id())
    out.add_eos_token_id(pieces.eos_id())
    out.add_unk_token_id(pieces.unk_id())
    out.add_add_bos_token(True)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()


def cases(program, folder, llama2):
    for name in MODELS:
        yield name, configuration(program, folder, name)
    bases = Bases(folder)
    for name in GGUF_FAMILIES:
        yield f"{name}, a family", of_family(program, bases, name)
    if smollm2.importlib.util.find_spec(smollm2.PACKAGE):
        path = smollm2.find_gguf()
        tokenizer = smollm2.build_tokenizer(gguf.GGUFReader(path))
        yield "SmolLM2's tokenizer", tokens(program, path, tokenizer, None)
    if llama2:
        path = folder / "llama2.gguf"
        write_sentencepiece(llama2 / "tokenizer.model", path)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(llama2 / "tokenizer.json"), bos_token="<s>", eos_token="</s>")
        yield "Llama 2's tokenizer", tokens(program, path, tokenizer, tokenizer.bos_token_id)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the example `inspect`, built")
    parser.add_argument("--llama2", type=Path, help="a folder with Llama 2's tokenizer")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    failed = 0
    with tempfile.TemporaryDirectory() as root:
        for name, differences in cases(Program(args.program), Path(root), args.llama2):
            print(f"{'differs' if differences else 'ok':8}{name}")
            for what, (expected, *found) in list(differences.items())[:3]:
                print(f"        {what!r}: {expected!r}, not {found!r}")
            failed += bool(differences)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
