use crate::llama::LlamaConfig;
use crate::tokenizer::{ChatTemplate, Tokenizer};
use crate::{Error, Result};

/// How the next token is chosen and when to stop.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// What the logits are divided by; 0 chooses the likeliest token (greedy).
    pub temperature: f64,
    /// Only the k likeliest tokens can be drawn, and others that are as likely as the last of them.
    pub top_k: Option<usize>,
    /// Only the fewest tokens whose probabilities sum to at least this can be drawn.
    pub top_p: Option<f64>,
    /// Only tokens whose probability is at least this part of the likeliest one's can be drawn. Nguyen et al.,
    /// <https://arxiv.org/abs/2407.01082>.
    pub min_p: Option<f64>,
    /// What the logits of tokens that are in the prompt or the answer already are divided by where they are above zero, and
    /// multiplied by where they are below; 1 changes nothing. Keskar et al., <https://arxiv.org/abs/1909.05858>.
    pub repetition_penalty: f64,
    /// The tokens at which to stop; if none are given, those that end a text by the model's configuration, and for
    /// [`TextGeneration`](super::TextGeneration) the tokenizer's: it may be another, which ends the answers that a model
    /// was finetuned on; in a conversation that of the template's turns too ([`with_end_of_turn`](Self::with_end_of_turn)).
    pub stop_tokens: Option<Vec<u32>>,
    /// The texts at which to stop, for [`TextGeneration`](super::TextGeneration): the answer ends before the first of them.
    pub stop_strings: Vec<String>,
    /// The number of answers to each prompt.
    pub answers: usize,
    /// The seed of the draws.
    pub seed: u64,
}

impl GenerateOptions {
    /// The likeliest token each time, up to `max_new_tokens` of them.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            stop_tokens: None,
            stop_strings: Vec::new(),
            answers: 1,
            seed: 0,
        }
    }

    /// Divides the logits by this: below 1 likely tokens become likelier, above 1 all become more alike, and 0 is greedy.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Draws from the k likeliest tokens only.
    pub fn with_top_k(mut self, k: usize) -> Self {
        self.top_k = Some(k);
        self
    }

    /// Draws from the likeliest tokens of this total probability only.
    pub fn with_top_p(mut self, p: f64) -> Self {
        self.top_p = Some(p);
        self
    }

    /// Draws only from tokens that have this part of the likeliest one's probability.
    pub fn with_min_p(mut self, p: f64) -> Self {
        self.min_p = Some(p);
        self
    }

    /// Makes tokens that were there before less likely.
    pub fn with_repetition_penalty(mut self, penalty: f64) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Stops at one of these tokens, which is not part of the result, and at no other.
    pub fn with_stop_tokens(mut self, tokens: impl IntoIterator<Item = u32>) -> Self {
        self.stop_tokens = Some(tokens.into_iter().collect());
        self
    }

    /// Unless they say at which tokens to stop: where a text ends and, if a chat template ends the assistant's turns with a
    /// token, there too.
    pub fn with_end_of_turn(
        mut self,
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
        config: &LlamaConfig,
    ) -> Self {
        self.stop_tokens.get_or_insert_with(|| {
            let mut ends = ends_of_texts(tokenizer, config);
            ends.extend(template.end_of_turn(tokenizer));
            ends
        });
        self
    }

    /// Stops before one of these texts too.
    pub fn with_stop_strings<S: Into<String>>(
        mut self,
        texts: impl IntoIterator<Item = S>,
    ) -> Self {
        self.stop_strings = texts.into_iter().map(Into::into).collect();
        self
    }

    /// So many answers to each prompt. With temperature 0 they are all the same.
    pub fn with_answers(mut self, answers: usize) -> Self {
        self.answers = answers;
        self
    }

    /// Draws by another seed: the same seed, model and prompts give the same answers.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// # Errors
    /// [`Error::InvalidArgument`] naming the option that cannot be used.
    pub(super) fn validate(&self) -> Result<()> {
        let invalid = |name, message: String| Err(Error::InvalidArgument { name, message });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            let message = format!("must be 0 or a positive number, not {}", self.temperature);
            return invalid("temperature", message);
        }
        if self.top_k == Some(0) {
            return invalid("top_k", "must be at least 1".into());
        }
        for (name, share) in [("top_p", self.top_p), ("min_p", self.min_p)] {
            if let Some(share) = share.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
                return invalid(name, format!("must lie in (0, 1], not {share}"));
            }
        }
        let penalty = self.repetition_penalty;
        if !(penalty.is_finite() && penalty > 0.0) {
            let message = format!("must be a positive number (1 changes nothing), not {penalty}");
            return invalid("repetition_penalty", message);
        }
        if self.stop_strings.iter().any(String::is_empty) {
            return invalid("stop_strings", "must not be empty texts".into());
        }
        match self.answers {
            0 => invalid("answers", "must be at least 1".into()),
            _ => Ok(()),
        }
    }
}

/// The model's ends of a text and the tokenizer's.
pub(super) fn ends_of_texts(tokenizer: &Tokenizer, config: &LlamaConfig) -> Vec<u32> {
    let ends = &config.eos_token_ids;
    let own = tokenizer.eos_id().filter(|eos| !ends.contains(eos));
    ends.iter().copied().chain(own).collect()
}
