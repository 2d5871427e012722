//! How an answer is chosen, as a program's arguments say.

use burn_peft::generate::GenerateOptions;
use burn_peft::{Error, Result};
use clap::Args;

#[derive(Args)]
pub struct Sampling {
    /// The most tokens of an answer.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Only the K likeliest tokens can be drawn.
    #[arg(long)]
    top_k: Option<usize>,
    /// Only the fewest tokens that have this probability together can be drawn.
    #[arg(long)]
    top_p: Option<f64>,
    /// Only tokens that have this part of the likeliest one's probability can be drawn.
    #[arg(long)]
    min_p: Option<f64>,
    /// Above 1, makes tokens that were there before less likely.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f64,
    /// A text before which the answer ends; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// The seed of what a higher temperature draws; 0 without it.
    #[arg(long)]
    seed: Option<u64>,
}

impl Sampling {
    /// For so many answers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what a temperature of 0 leaves without a meaning.
    pub fn options(&self, answers: usize) -> Result<GenerateOptions> {
        let without_temperature = [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--seed", self.seed.is_some()),
            ("--answers", answers > 1),
        ];
        let mut drawn = without_temperature.iter().filter(|(_, is_set)| *is_set);
        if let Some((argument, _)) = drawn.next().filter(|_| self.temperature == 0.0) {
            return Err(Error::InvalidArgument {
                name: "temperature",
                message: format!(
                    "{argument} says how answers are drawn, and none is: give a --temperature above 0, such as 0.7"
                ),
            });
        }
        let mut options = GenerateOptions::greedy(self.max_new_tokens)
            .with_temperature(self.temperature)
            .with_repetition_penalty(self.repetition_penalty)
            .with_stop_strings(self.stop.iter().cloned())
            .with_seed(self.seed.unwrap_or_default())
            .with_answers(answers);
        (options.top_k, options.top_p, options.min_p) = (self.top_k, self.top_p, self.min_p);
        Ok(options)
    }
}
