//! The container of llama.cpp's files: a header, metadata, a table of tensors, and their numbers.
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! What metadata and tensors mean is known to [`tokenizer`](crate::tokenizer) and [`checkpoint`](crate::checkpoint).

mod cursor;
mod kind;
mod metadata;
mod reader;
mod writer;

pub(crate) use cursor::Cursor;
pub(crate) use kind::TensorKind;
pub(crate) use metadata::{Metadata, SENTENCEPIECE, TOKENIZER, TOKENS, Values, shortest};
pub(crate) use reader::{Entry, GgufFile, is_gguf};
pub(crate) use writer::{Tensor, Value, metadata_bytes, write_gguf};
