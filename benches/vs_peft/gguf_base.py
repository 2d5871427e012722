"""GGUF files of a case's model, packed by llama.cpp's own functions."""

import ctypes
import pathlib
import sys

import gguf
import numpy as np
import xllamacpp.xllamacpp
from gguf.quants import quantize
from transformers import LlamaForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests" / "python"))
from gguf_files import write_base  # noqa: E402
from smollm2 import find_gguf as find_smollm2  # noqa: E402, F401

# What linear layers are packed as.
KINDS = ["Q4_1", "Q4_K"]
# Where blocks do not divide a row, llama.cpp takes another kind.
FALLBACK = {"Q4_K": "Q5_0"}
VOCABULARY = ["token_embd.weight", "output.weight"]

Packed = tuple[np.ndarray, gguf.GGMLQuantizationType]


def pack(values: np.ndarray, kind: str) -> Packed:
    """Rows of f32 as blocks, by llama.cpp."""
    kind = gguf.GGMLQuantizationType[kind]
    rows, columns = values.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if columns % block != 0:
        return pack(values, FALLBACK[kind.name])
    packed = np.empty((rows, columns // block * size), np.uint8)
    values = np.ascontiguousarray(values, np.float32)
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (values, packed)]
    sizes = [ctypes.c_int64(size) for size in (0, rows, columns)]
    written = library.ggml_quantize_chunk(int(kind), *pointers, *sizes, None)
    if written != packed.nbytes:
        raise SystemExit(f"{written} bytes of {kind.name}, not {packed.nbytes}")
    return packed, kind


def write_gguf(model: LlamaForCausalLM, path: pathlib.Path, kind: str) -> None:
    """Linear layers in the kind, embedding and output in bf16, norms in f32."""

    def packed(name: str, values: np.ndarray) -> Packed | None:
        if name in VOCABULARY:
            bf16 = gguf.GGMLQuantizationType.BF16
            return quantize(values, bf16), bf16
        return pack(values, kind) if values.ndim == 2 else None

    write_base(model, path, packed)
