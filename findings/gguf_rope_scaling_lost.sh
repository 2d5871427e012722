#!/usr/bin/env bash
# transformers 5.23.0: a Llama's GGUF file runs without its rotary scaling.
#
# GGUF has linear and yarn scaling in the metadata (`llama.rope.scaling.type` and `.factor`), and Llama 3.1's as a tensor,
# `rope_freqs.weight`, by which frequencies are divided. Of all that transformers reads none: the model is one with plain
# rotary embeddings, and no warning names them.
#
# Seen (one layer, rows of 48 tokens; the configuration's rotary parameters, and the largest difference of the logits from
# those of the file without scaling):
#   plain: default, 0.0
#   linear by 4: default, 0.0
#   rope_freqs: default, 0.0
#   the same model with linear scaling in its configuration: linear, above 1e-3
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet torch==2.15.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
fi
cd "$work"
export HF_HUB_OFFLINE=1 # every model is made here
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
import gguf
import numpy as np
import torch
from transformers import LlamaForCausalLM

DIM, HEADS, WORDS = 64, 2, 32
HALF = DIM // HEADS // 2
random = np.random.default_rng(0)
tensors = {
    f"blk.0.{name}.weight": random.normal(0, 0.3, (DIM, DIM)).astype(np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
tensors |= {f"blk.0.{name}.weight": np.ones(DIM, np.float32) for name in ("attn_norm", "ffn_norm")}
tensors |= {name: random.normal(0, 1, (WORDS, DIM)).astype(np.float32) for name in ("token_embd.weight", "output.weight")}
tensors["output_norm.weight"] = np.ones(DIM, np.float32)


def write(name, linear=None, factors=None):
    out = gguf.GGUFWriter(name, "llama")
    out.add_context_length(64)
    out.add_embedding_length(DIM)
    out.add_block_count(1)
    out.add_feed_forward_length(DIM)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(1e4)
    out.add_rope_dimension_count(2 * HALF)
    out.add_vocab_size(WORDS)
    if linear:
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(linear)
    of = tensors if factors is None else tensors | {"rope_freqs.weight": factors}
    for key, value in of.items():
        out.add_tensor(key, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


ids = torch.arange(48)[None] % WORDS


@torch.no_grad()
def run(model):
    return model.eval()(ids, use_cache=False).logits


write("plain.gguf")
write("linear.gguf", linear=4.0)
write("freqs.gguf", factors=np.full(HALF, 4, np.float32))
files = {"plain": "plain.gguf", "linear by 4": "linear.gguf", "rope_freqs": "freqs.gguf"}
models = {
    name: LlamaForCausalLM.from_pretrained(".", gguf_file=file, dtype=torch.float32) for name, file in files.items()}
plain = run(models["plain"])
for name, model in models.items():
    kind, error = model.config.rope_parameters["rope_type"], (run(model) - plain).abs().max().item()
    print(f"{name}: {kind}, {error:.1f}")
    assert kind == "default" and error == 0

config = models["plain"].config
config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
scaled = LlamaForCausalLM(config)
scaled.load_state_dict(models["plain"].state_dict())
error = (run(scaled) - plain).abs().max().item()
print(f"the same model with linear scaling in its configuration: linear, {'above 1e-3' if error > 1e-3 else error}")
assert error > 1e-3
EOP
