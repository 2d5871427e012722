use super::Evaluator;
use super::evaluator::nothing;
use crate::Result;
use crate::generate::{GenerateOptions, check_prompts, generate_text};

/// A prompt and the text that is the right answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Question {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The right answer.
    pub answer: String,
}

impl Question {
    /// A question.
    pub fn new(prompt: Vec<u32>, answer: impl Into<String>) -> Self {
        let answer = answer.into();
        Self { prompt, answer }
    }
}

/// A model's answers, and which are right.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExactMatches {
    /// The answers, in the order of the questions.
    pub answers: Vec<String>,
    /// Which are, but for white space around them, the texts that were asked for.
    pub is_right: Vec<bool>,
}

impl ExactMatches {
    /// The share of right answers.
    pub fn share(&self) -> f64 {
        let right = self.is_right.iter().filter(|is_right| **is_right);
        right.count() as f64 / self.is_right.len() as f64
    }
}

impl Evaluator<'_> {
    /// Lets the model answer, some questions at a time.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if there is no question or a prompt, which is named by its
    /// index, leaves no room for an answer, and those of [`generate_text`].
    pub fn exact_match(
        &self,
        questions: &[Question],
        options: &GenerateOptions,
    ) -> Result<ExactMatches> {
        if questions.is_empty() {
            return Err(nothing("questions", "give at least one"));
        }
        let prompts: Vec<_> = questions.iter().map(|question| &question.prompt).collect();
        check_prompts(&prompts, &self.model.config)?;
        let options = options.clone().with_answers(1);
        let mut order: Vec<_> = (0..questions.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(questions[*index].prompt.len()));
        let mut answers = vec![String::new(); questions.len()];
        for indices in order.chunks(self.batch_size) {
            let prompts: Vec<_> = indices.iter().map(|i| &questions[*i].prompt[..]).collect();
            let texts = generate_text(self.model, self.tokenizer, &prompts, &options)?;
            for (index, text) in indices.iter().zip(texts) {
                answers[*index] = text;
            }
        }
        let pairs = answers.iter().zip(questions);
        let is_right = pairs.map(|(answer, question)| answer.trim() == question.answer.trim());
        Ok(ExactMatches {
            is_right: is_right.collect(),
            answers,
        })
    }
}
