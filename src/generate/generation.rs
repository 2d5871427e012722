use burn::module::Module;
use burn::tensor::{DType, Int, Tensor};

use super::{GenerateOptions, Sampler};
use crate::llama::{KvCache, LlamaConfig, TransformerDecoder};
use crate::lora::Routes;
use crate::ops;
use crate::{Error, Result};

/// Continues a prompt; returns the new tokens without the stop token. Ends early at the model's
/// longest sequence.
///
/// # Errors
/// As [`Generation::new`], [`Error::NotFinite`] if the model's logits are no numbers, and [`Error::InvalidArgument`] if the
/// options ask for several answers ([`generate_batch`]).
pub fn generate(
    model: &TransformerDecoder,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<Vec<u32>> {
    if options.answers > 1 {
        let message = "`generate` gives one answer: take `generate_batch` for more".into();
        return Err(invalid("answers", message));
    }
    let mut answers = generate_batch(model, &[prompt], options)?;
    Ok(answers.pop().expect("an answer to each prompt"))
}

/// Continues prompts, which may be of different lengths, together; returns the new tokens of the answers to the first
/// prompt, then those to the second, and so on.
///
/// # Errors
/// As [`Generation::new`], and [`Error::NotFinite`] if the model's logits are no numbers.
pub fn generate_batch<P: AsRef<[u32]>>(
    model: &TransformerDecoder,
    prompts: &[P],
    options: &GenerateOptions,
) -> Result<Vec<Vec<u32>>> {
    let mut generation = Generation::new(model, prompts, options)?;
    generation.try_for_each(|tokens| tokens.map(drop))?;
    let answers = generation.into_answers().into_iter();
    Ok(answers.map(|answer| answer.tokens).collect())
}

/// An answer, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The index of its prompt.
    pub prompt: usize,
    /// The new tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended; none while it goes on.
    pub end: Option<End>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The model gave this stop token.
    Token(u32),
    /// It has `max_new_tokens`, or fills the model's longest sequence.
    Length,
    /// The caller ended it, [`Generation::end`]; so does a stop string.
    Stopped,
}

/// A token that a pass gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewToken {
    /// The index of the answer: those to the first prompt come first.
    pub answer: usize,
    /// The token.
    pub id: u32,
}

/// A generation that goes on as long as one asks for the next tokens: each item has one for every answer that has not
/// ended. What ends an answer is not among them.
#[derive(Debug)]
pub struct Generation {
    model: TransformerDecoder,
    options: GenerateOptions,
    stop_tokens: Vec<u32>,
    prompts: Vec<Vec<u32>>,
    answers: Vec<Answer>,
    samplers: Vec<Sampler>,
    /// The adapter of each prompt.
    routes: Option<Routes>,
    cache: KvCache,
    /// The answers of the cache's rows; none before the first pass.
    rows: Option<Vec<usize>>,
    has_failed: bool,
}

impl Generation {
    /// A generation that has not begun.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`] if a prompt has a token beyond the vocabulary,
    /// [`Error::InvalidArgument`] if one is empty or leaves no room in the model's longest sequence, there is none, or an
    /// option cannot be used: stop strings are for [`TextGeneration`](super::TextGeneration).
    pub fn new<P: AsRef<[u32]>>(
        model: &TransformerDecoder,
        prompts: &[P],
        options: &GenerateOptions,
    ) -> Result<Self> {
        options.validate()?;
        if !options.stop_strings.is_empty() {
            let message = "need a tokenizer: take `TextGeneration` or `generate_text`".into();
            return Err(invalid("stop_strings", message));
        }
        Self::of_ids(model, prompts, options)
    }

    /// The same, whatever stop strings there are.
    pub(super) fn of_ids<P: AsRef<[u32]>>(
        model: &TransformerDecoder,
        prompts: &[P],
        options: &GenerateOptions,
    ) -> Result<Self> {
        options.validate()?;
        check_prompts(prompts, &model.config)?;
        let streams = 0..options.answers as u64;
        let samplers = streams.map(|stream| Sampler::of_stream(options, stream));
        let samplers = samplers.collect::<Result<Vec<_>>>()?;
        let answers = (0..prompts.len()).flat_map(|prompt| {
            std::iter::repeat_n(prompt, options.answers).map(|prompt| Answer {
                prompt,
                tokens: Vec::new(),
                end: (options.max_new_tokens == 0).then_some(End::Length),
            })
        });
        let ends = &model.config.eos_token_ids;
        Ok(Self {
            stop_tokens: options.stop_tokens.as_ref().unwrap_or(ends).clone(),
            answers: answers.collect(),
            samplers: prompts.iter().flat_map(|_| samplers.clone()).collect(),
            prompts: prompts
                .iter()
                .map(|prompt| prompt.as_ref().to_vec())
                .collect(),
            options: options.clone(),
            routes: None,
            cache: KvCache::new(model.config.num_layers),
            model: model.valid(),
            rows: None,
            has_failed: false,
        })
    }

    /// The same with an adapter for each prompt.
    ///
    /// # Panics
    /// If there is not one route for each prompt.
    pub fn with_routes(mut self, routes: Routes) -> Self {
        let fits = routes.num_rows() == self.prompts.len();
        assert!(fits, "each prompt has one adapter or none");
        self.routes = Some(routes);
        self
    }

    /// The same after another generation of the same model, with one answer to one prompt: what this one's prompt has in
    /// common with its text is not read again, as the next question of a conversation. Where a window has passed over what
    /// would be needed, or the rotary angles follow from the length, all is read.
    pub fn after(mut self, last: Self) -> Self {
        if let [prompt] = &self.prompts[..] {
            self.cache = last.read_of(prompt).unwrap_or(self.cache);
        }
        self
    }

    /// The cache of what a prompt begins with, but for its last token, whose logits are not kept.
    fn read_of(mut self, prompt: &[u32]) -> Option<KvCache> {
        let length = self.cache.len();
        let text = self.answers.first().map(|_| self.sequence(0))?;
        let common = text.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let common = common.min(length).min(prompt.len() - 1);
        let (rope, longest) = (self.model.config.rope(), length.max(prompt.len()));
        let turns = (common + 1..=longest).any(|length| rope.changes_at(length));
        let is_read = common > 0 && !turns && !self.has_failed && self.cache.truncate(common);
        is_read.then_some(self.cache)
    }

    /// What the model has read: all but the last token of each answer that goes on.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The answers as far as they have come, those to the first prompt first.
    pub fn answers(&self) -> &[Answer] {
        &self.answers
    }

    /// The answers.
    pub fn into_answers(self) -> Vec<Answer> {
        self.answers
    }

    /// Ends an answer, if it has not ended yet.
    ///
    /// # Panics
    /// If there is no answer of this index.
    pub fn end(&mut self, answer: usize) {
        self.answers[answer].end.get_or_insert(End::Stopped);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Lets no pass follow.
    pub(super) fn fail(&mut self) {
        self.has_failed = true;
    }

    fn has_ended(&self) -> bool {
        self.answers.iter().all(|answer| answer.end.is_some())
    }

    /// The tokens of one pass.
    fn pass(&mut self) -> Result<Vec<NewToken>> {
        let logits = self.next_logits();
        let vocab = logits.len() / self.cache.lengths().len();
        let rows = self.forked();
        let mut new = Vec::new();
        for (answer, source) in rows {
            let logits = &logits[source * vocab..(source + 1) * vocab];
            new.extend(self.add_token(answer, logits)?);
        }
        Ok(new)
    }

    /// The logits after each row of the cache, one row after the other.
    fn next_logits(&mut self) -> Vec<f32> {
        let inputs = self.inputs();
        let lengths: Vec<_> = inputs.iter().map(Vec::len).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let padded = inputs.iter().flat_map(|ids| {
            let padding = std::iter::repeat_n(0, longest - ids.len());
            ids.iter().map(|id| *id as i32).chain(padding)
        });
        let padded: Vec<i32> = padded.collect();
        let device = self.model.norm.weight.lazy_device();
        let ids = Tensor::<1, Int>::from_ints(&padded[..], &device);
        let ids = ids.reshape([lengths.len(), longest]);
        let routes = self.row_routes();
        let (model, cache) = (&self.model, &mut self.cache);
        let data = ops::in_pool(&device, || {
            let logits = model.forward_cached_rows(ids, &lengths, cache, routes.as_ref());
            logits.cast(DType::F32).into_data()
        });
        data.as_slice().expect("logits were cast to f32").to_vec()
    }

    /// What each row of the cache has next: a prompt at first, then the last token of an answer.
    fn inputs(&mut self) -> Vec<Vec<u32>> {
        let Some(rows) = self.drop_ended() else {
            let read = self.cache.len();
            let unread = self.prompts.iter().map(|prompt| prompt[read..].to_vec());
            return unread.collect();
        };
        let rope = self.model.config.rope();
        let mut lengths = self.cache.lengths().iter();
        if lengths.any(|length| rope.changes_at(length + 1)) {
            // Keys in the cache are rotated as those of a shorter sequence.
            self.cache = KvCache::new(self.model.config.num_layers);
            return rows.iter().map(|row| self.sequence(*row)).collect();
        }
        let last = |row: &usize| self.answers[*row].tokens.last().copied();
        rows.iter()
            .map(|row| last(row).into_iter().collect())
            .collect()
    }

    /// The answers that go on, in the rows that are left of the cache; none before the first pass.
    fn drop_ended(&mut self) -> Option<Vec<usize>> {
        let rows = self.rows.take()?;
        let goes_on = |row: &usize| self.answers[rows[*row]].end.is_none();
        let left = Vec::from_iter((0..rows.len()).filter(goes_on));
        if left.len() < rows.len() {
            self.cache = self.cache.take_rows(&left);
        }
        let rows: Vec<_> = left.into_iter().map(|row| rows[row]).collect();
        self.rows = Some(rows.clone());
        Some(rows)
    }

    /// The answers and the rows of the last logits that they go on from. After the first pass a prompt's row of the cache
    /// becomes one for each answer.
    fn forked(&mut self) -> Vec<(usize, usize)> {
        if let Some(rows) = &self.rows {
            return rows.iter().copied().zip(0..).collect();
        }
        let goes_on = |index: &usize| self.answers[*index].end.is_none();
        let rows = Vec::from_iter((0..self.answers.len()).filter(goes_on));
        let prompts = Vec::from_iter(rows.iter().map(|row| self.answers[*row].prompt));
        if !prompts.iter().copied().eq(0..self.prompts.len()) {
            self.cache = self.cache.take_rows(&prompts);
        }
        self.rows = Some(rows.clone());
        rows.into_iter().zip(prompts).collect()
    }

    fn row_routes(&self) -> Option<Routes> {
        let routes = self.routes.as_ref()?;
        Some(match &self.rows {
            None => routes.clone(),
            Some(rows) => routes.of_rows(rows.iter().map(|row| self.answers[*row].prompt)),
        })
    }

    /// The prompt and what has been answered.
    fn sequence(&self, answer: usize) -> Vec<u32> {
        let Answer { prompt, tokens, .. } = &self.answers[answer];
        [&self.prompts[*prompt][..], tokens].concat()
    }

    /// Chooses the next token of an answer; none if it ends there.
    fn add_token(&mut self, index: usize, logits: &[f32]) -> Result<Option<NewToken>> {
        let sequence = match self.options.repetition_penalty {
            1.0 => Vec::new(),
            _ => self.sequence(index),
        };
        let id = self.samplers[index].choose(logits, &sequence)?;
        let answer = &mut self.answers[index];
        if self.stop_tokens.contains(&id) {
            answer.end = Some(End::Token(id));
            return Ok(None);
        }
        answer.tokens.push(id);
        let room = self.model.config.context_len() - self.prompts[answer.prompt].len();
        if answer.tokens.len() == self.options.max_new_tokens.min(room) {
            answer.end = Some(End::Length);
        }
        Ok(Some(NewToken { answer: index, id }))
    }
}

impl Iterator for Generation {
    type Item = Result<Vec<NewToken>>;

    /// The tokens of another pass, empty if all answers end there; none after the last, and after an error:
    /// [`Error::NotFinite`] if a logit is no number.
    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed || self.has_ended() {
            return None;
        }
        let tokens = self.pass();
        self.has_failed = tokens.is_err();
        Some(tokens)
    }
}

fn invalid(name: &'static str, message: String) -> Error {
    Error::InvalidArgument { name, message }
}

/// Checks that each prompt can be continued.
pub(crate) fn check_prompts<P: AsRef<[u32]>>(prompts: &[P], config: &LlamaConfig) -> Result<()> {
    if prompts.is_empty() {
        return Err(invalid("prompts", "give at least one".into()));
    }
    for (index, prompt) in prompts.iter().enumerate() {
        let which = match prompts.len() {
            1 => String::new(),
            _ => format!("the one of index {index} "),
        };
        check_prompt(prompt.as_ref(), config, &which)?;
    }
    Ok(())
}

fn check_prompt(prompt: &[u32], config: &LlamaConfig, which: &str) -> Result<()> {
    let (len, longest, vocab_size) = (prompt.len(), config.context_len(), config.vocab_size);
    if len == 0 {
        let message = format!("{which}must hold at least one token (the BOS token will do)");
        return Err(invalid("prompt", message));
    }
    if len >= longest {
        let message = format!(
            "{which}has {len} tokens, which leave no room for an answer in the model's context of {longest}"
        );
        return Err(invalid("prompt", message));
    }
    match prompt.iter().find(|id| **id as usize >= vocab_size) {
        Some(&id) => Err(Error::TokenOutOfRange { id, vocab_size }),
        None => Ok(()),
    }
}
