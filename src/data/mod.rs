//! From a file of records to batches of token ids.
//!
//! ```text
//! files -> Record -> Sample (tokens, labels) -> Dataset -> Batch (padded, on the host) -> tensors
//! ```
//!
//! [`SftData`] goes all that way, from files to the batches of each step.
//!
//! Everything up to [`Batch`] is plain host data, so a data set can be looked at, filtered and
//! tested without a device.
//!
//! ```no_run
//! use burn_peft::checkpoint::read_hf_config;
//! use burn_peft::data::{Batch, check_vocab, load_alpaca, shuffled_indices, tokenize_records};
//! use burn_peft::tokenizer::Tokenizer;
//!
//! # fn main() -> burn_peft::Result<()> {
//! let tokenizer = Tokenizer::from_dir("Llama-2-7b-hf")?;
//! let records = load_alpaca("alpaca_data.json")?;
//! let samples = tokenize_records(&records, &tokenizer, true, Some(512))?;
//! let vocab_size = read_hf_config("Llama-2-7b-hf")?.vocab_size;
//! check_vocab(&samples, vocab_size)?;
//! let order = shuffled_indices(samples.len(), 42, 0, true);
//! for indices in order.chunks(2) {
//!     let rows: Vec<_> = indices.iter().map(|&i| &samples[i]).collect();
//!     let batch = Batch::collate(&rows, tokenizer.pad_id(vocab_size));
//!     assert_eq!(batch.input_ids.len(), batch.batch_size * batch.seq_len);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`RecordEncoder`] makes the samples of conversations and of other formats, by the model's chat template; with a
//! [`SampleStore`] also of files that are larger than memory. Data of your own is a [`Dataset`].

mod alpaca;
mod batch;
mod dataset;
mod formats;
mod json;
mod order;
#[cfg(feature = "parquet")]
mod parquet;
mod record_encoder;
mod records;
mod sft;
mod source;
mod store;
mod tokens;

pub use crate::tokenizer::{Conversation, Message};
pub use alpaca::{AlpacaRecord, load_alpaca, parse_alpaca};
pub use batch::{Batch, Padding, pack};
pub use dataset::{Dataset, Subset, check_vocab, fingerprint};
pub use order::{DataOrder, shuffled_indices, split_validation, weighted_indices};
pub use record_encoder::{RecordCounts, RecordEncoder, TooLong, TrainOn, Treatment};
pub use records::{
    Format, Record, Records, Split, load_records, load_split, parse_records, weighted_paths,
};
pub use sft::{SftData, SftOptions};
pub use store::SampleStore;
pub use tokens::{IGNORE_INDEX, Sample, tokenize_records};
