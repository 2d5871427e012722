//! How good a model is, in the field's numbers: the likelihood of given completions, the perplexity of a text, multiple
//! choice by likelihood, exact match. The definitions are those of the
//! [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness), and so are the numbers.
//!
//! ```
//! use burn::tensor::Device;
//! use burn_peft::checkpoint::{load_hf, read_hf_config};
//! use burn_peft::evaluate::{ChoiceRecord, Evaluator};
//! use burn_peft::tokenizer::Tokenizer;
//!
//! # fn main() -> burn_peft::Result<()> {
//! let dir = "examples/assets/tiny";
//! let mut model = read_hf_config(dir)?.init(&Device::default());
//! load_hf(&mut model, dir)?;
//! let tokenizer = Tokenizer::from_dir(dir)?;
//! let evaluator = Evaluator::new(&model, &tokenizer);
//! let perplexity = evaluator.perplexity("A tyre is made of rubber.")?;
//! println!("{:.1} a token, {:.2} bits a byte", perplexity.by_token(), perplexity.bits_per_byte());
//! let record = ChoiceRecord::new("A tyre is made of", ["glass.", "rubber."], 1);
//! println!("right: {:.0} %", 100.0 * evaluator.multiple_choice(&[record])?.acc());
//! # Ok(())
//! # }
//! ```
//!
//! Losses over such likelihoods train a model: [`training::SequenceLoss`](crate::training::SequenceLoss).

mod choice;
mod completion;
mod evaluator;
mod exact_match;
mod perplexity;

pub use crate::training::SampleLogProb;
pub use choice::{Choice, ChoiceRecord, ChoiceScores, load_choices, parse_choices};
pub use completion::Completion;
pub use evaluator::Evaluator;
pub use exact_match::{ExactMatches, Question};
pub use perplexity::Perplexity;
