#!/usr/bin/env bash
# llama.cpp (xllamacpp 2026.10.11549): yarn's bounds in a GGUF file have no effect, but in one architecture.
#
# GGUF has keys for the bounds between which yarn mixes frequencies (`rope.scaling.yarn_beta_fast`, `.yarn_beta_slow`), and
# its Python package writes them for any architecture. llama.cpp reads them for `mistral3`; for a `llama` (and qwen3, granite,
# olmo2, smollm3) it computes with 32 and 1, whatever the file says, and no message names them. The factor and the original
# context beside them have effect.
#
# Seen (one layer, 256 positions from 64; the largest difference of the next token's log-probabilities):
#   llama, bounds of 8 and 2 against none: 0.0
#   llama, a factor of 8 against 4: above 1e-2
#   mistral3, bounds of 8 and 2 against none: above 1e-2
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
fi
cd "$work"
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
import gguf
import numpy as np
import xllamacpp
from xllamacpp import ggml_type, llama_flash_attn_type

DIM, HEADS, WORDS = 64, 1, 3 + 256
random = np.random.default_rng(0)
TENSORS = {
    f"blk.0.{name}.weight": random.normal(0, 0.3, (DIM, DIM)).astype(np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
TENSORS |= {f"blk.0.{name}.weight": np.ones(DIM, np.float32) for name in ("attn_norm", "ffn_norm")}
TENSORS |= {name: random.normal(0, 1, (WORDS, DIM)).astype(np.float32) for name in ("token_embd.weight", "output.weight")}
TENSORS["output_norm.weight"] = np.ones(DIM, np.float32)


def write(architecture, factor, bounds):
    path = f"{architecture}.{factor}.{bounds is not None}.gguf"
    out = gguf.GGUFWriter(path, architecture)
    out.add_context_length(256)
    out.add_embedding_length(DIM)
    out.add_block_count(1)
    out.add_feed_forward_length(DIM)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(1e4)
    out.add_rope_dimension_count(DIM // HEADS)
    out.add_vocab_size(WORDS)
    out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    out.add_rope_scaling_factor(factor)
    out.add_rope_scaling_orig_ctx_len(64)
    if bounds:
        out.add_rope_scaling_yarn_beta_fast(bounds[0])
        out.add_rope_scaling_yarn_beta_slow(bounds[1])
    out.add_tokenizer_model("llama")
    out.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    out.add_token_scores([0.0] * WORDS)
    out.add_token_types([gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL,
                         *([gguf.TokenType.BYTE] * 256)])
    for key, value in TENSORS.items():
        out.add_tensor(key, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def run(*file):
    params = xllamacpp.CommonParams()
    params.model.path = write(*file)
    params.n_ctx, params.warmup, params.cpuparams.n_threads = 256, False, 1
    params.cache_type_k = params.cache_type_v = ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    answer = xllamacpp.Server(params).handle_completions({
        "prompt": [3 + 7 * i % 256 for i in range(200)], "n_predict": 1, "n_probs": WORDS, "temperature": 0})
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return np.array([row["logprob"] for row in sorted(found, key=lambda row: row["id"])])


def show(what, a, b, differs):
    error = np.abs(run(*a) - run(*b)).max()
    print(f"{what}: {'above 1e-2' if error > 1e-2 else round(float(error), 6)}")
    assert error > 1e-2 if differs else error == 0


show("llama, bounds of 8 and 2 against none", ("llama", 4.0, (8.0, 2.0)), ("llama", 4.0, None), False)
show("llama, a factor of 8 against 4", ("llama", 8.0, None), ("llama", 4.0, None), True)
show("mistral3, bounds of 8 and 2 against none", ("mistral3", 4.0, (8.0, 2.0)), ("mistral3", 4.0, None), True)
EOP
