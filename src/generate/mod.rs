//! Text from a model, token by token, with a [key-value cache](crate::llama::KvCache).
//!
//! ```text
//! prompts ─► padded batch ─► logits ─► Sampler ─► a token a row ─► the cache, without the rows that ended ─► logits ...
//! ```
//!
//! [`answer`] asks a model one question, a [`Chat`] goes on. [`generate`] continues a prompt, [`generate_batch`] several of different lengths in one forward pass, with one or
//! more answers each. [`Generation`] is the loop itself, an iterator over what each pass gives, and [`TextGeneration`] the
//! same in pieces of text. What a prompt is answered does not depend on the other prompts of a batch.
//!
//! ```
//! use burn::tensor::Device;
//! use burn_peft::checkpoint::{LoadOptions, load_model, load_tokenizer};
//! use burn_peft::generate::{GenerateOptions, TextGeneration};
//!
//! # fn main() -> burn_peft::Result<()> {
//! let dir = "examples/assets/tiny";
//! let model = load_model(dir, None, &LoadOptions::new(&Device::default()))?;
//! let tokenizer = load_tokenizer(dir, &model.config)?;
//! let prompts = ["A tyre is made of", "The"].map(|text| tokenizer.encode_with_bos(text).unwrap());
//! let options = GenerateOptions::greedy(16)
//!     .with_temperature(0.8)
//!     .with_min_p(0.1)
//!     .with_answers(2)
//!     .with_stop_strings(["."]);
//! for pieces in TextGeneration::new(&model, &tokenizer, &prompts, &options)? {
//!     for piece in pieces? {
//!         println!("answer {}: {:?}", piece.answer, piece.text); // those of the first prompt: 0 and 1
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod answer;
mod chat;
mod generation;
mod options;
mod sampling;
mod text;

pub use answer::{Prompt, answer};
pub use chat::{Chat, Reply};
pub(crate) use generation::check_prompts;
pub use generation::{Answer, End, Generation, NewToken, generate, generate_batch};
pub use options::GenerateOptions;
pub use sampling::{Sampler, TokenProbability, token_probabilities};
pub use text::{NewText, TextGeneration, TextPieces, generate_text};
