//! Which of a rendered conversation the assistant wrote.

use std::ops::Range;
use std::sync::Arc;

use fancy_regex::Regex;

use super::{ChatTemplate, Conversation, Message, Rendered};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

const ASSISTANT: &str = "assistant";

impl ChatTemplate {
    /// The bytes of `rendered`, the whole conversation, that are the assistant's: what a model is to learn to
    /// write after each prompt, to the token that ends its turn; with `last` that of the last turn alone.
    /// Nothing of the messages that are [given](Conversation::num_given) or not to be [learned](Message::is_learned).
    ///
    /// They are those that the template [marks](Self::marks_answers). With a template that marks none, an
    /// answer begins where the conversation before it, rendered with a generation prompt, ends, and it ends
    /// where the conversation up to it does; an assistant's message before all others is none then. White
    /// space behind a special token at the end is left out, since nobody reads it at generation.
    ///
    /// # Errors
    ///
    /// Those of [`ChatTemplate::render`], of the conversation's beginnings too, and [`Error::Format`] if a
    /// template without marks writes an answer in another way once the conversation goes on.
    pub fn answers(
        &self,
        conversation: &Conversation,
        rendered: &Rendered,
        last: bool,
    ) -> Result<Vec<Range<usize>>> {
        self.answers_before(rendered.text.len(), conversation, rendered, last)
    }

    /// The token that ends what the assistant says, if the template ends it with a special one: there a model stops that
    /// was trained by it, whatever ends its texts.
    pub fn end_of_turn(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let turns = [Message::new("user", "a"), Message::new(ASSISTANT, "b")];
        let conversation = Conversation::new(turns);
        let rendered = self.render(&conversation, false).ok()?;
        let answer = self.answers(&conversation, &rendered, true).ok()?.pop()?;
        let text = rendered.text[answer].trim_end();
        let last = found(&self.words, text).last()?;
        let name = (last.end == text.len()).then_some(&text[last])?;
        tokenizer.inner.token_to_id(name)
    }

    /// [`ChatTemplate::answers`] that begin before a place: what stands behind it is not looked at.
    pub(crate) fn answers_before(
        &self,
        place: usize,
        conversation: &Conversation,
        rendered: &Rendered,
        last: bool,
    ) -> Result<Vec<Range<usize>>> {
        let mut turns = conversation.learned().map(|(place, _)| place);
        let turns: Vec<usize> = match last {
            true => turns.next_back().into_iter().collect(),
            false => turns.collect(),
        };
        match (self.marks_answers, turns.first()) {
            (_, None) => Ok(Vec::new()),
            (true, Some(&first)) => {
                let mut answers = rendered.generated.clone();
                if last || conversation.num_given > 0 {
                    let start = self.start_of(first, conversation, &rendered.text)?;
                    answers.retain(|range| range.end > start);
                    if conversation.num_given > 0 {
                        // A mark may begin in what the prompt for the answer ends with.
                        let starts = answers.iter_mut().map(|range| &mut range.start);
                        starts.for_each(|at| *at = start.max(*at));
                    }
                }
                let messages = conversation.messages.iter();
                let is_left_out = |it: &Message| it.role() == ASSISTANT && !it.is_learned();
                let left_out = messages.enumerate().skip(conversation.num_given);
                for (turn, _) in left_out.filter(|(_, it)| is_left_out(it)) {
                    let start = self.start_of(turn, conversation, &rendered.text)?;
                    let end = self.end_of(turn, start, conversation, &rendered.text)?;
                    answers.retain(|range| range.end <= start || range.start >= end);
                }
                Ok(answers)
            }
            (false, Some(_)) => {
                let turns = turns.into_iter().filter(|turn| *turn > 0);
                let mut answers = Vec::new();
                for turn in turns {
                    let start = self.start_of(turn, conversation, &rendered.text)?;
                    if start >= place {
                        break;
                    }
                    answers.push(self.answer(turn, start, conversation, &rendered.text)?);
                }
                Ok(answers)
            }
        }
    }

    fn answer(
        &self,
        turn: usize,
        start: usize,
        conversation: &Conversation,
        full: &str,
    ) -> Result<Range<usize>> {
        // Nothing of a message that the template leaves out.
        let end = self.end_of(turn, start, conversation, full)?.max(start);
        Ok(start..self.without_space_at_end(&full[start..end]).len() + start)
    }

    /// Where an answer begins. Some templates begin every answer of today in a way that those of before do
    /// not have, with a thought say: then it begins where the two part.
    fn start_of(&self, turn: usize, conversation: &Conversation, full: &str) -> Result<usize> {
        if turn == 0 {
            return Ok(0);
        }
        let before = conversation.up_to(turn);
        let prompt = self.render(&before, true)?.text;
        if full.starts_with(&prompt) {
            return Ok(prompt.len());
        }
        let history = self.render(&before, false)?.text;
        match full.starts_with(&history) {
            true => Ok(self.common(&prompt, full).max(history.len())),
            false => Err(self.changes_history(turn)),
        }
    }

    fn end_of(
        &self,
        turn: usize,
        start: usize,
        conversation: &Conversation,
        full: &str,
    ) -> Result<usize> {
        if turn + 1 == conversation.messages.len() {
            return Ok(full.len());
        }
        let alone = self.render(&conversation.up_to(turn + 1), false)?.text;
        if full.starts_with(&alone) {
            return Ok(alone.len());
        }
        let (tail, rest) = (alone.get(start..).unwrap_or_default(), &full[start..]);
        // A template that takes thoughts out of earlier answers leaves their ends.
        let ends = tail.char_indices().map(|(from, _)| &tail[from..]);
        let kept = ends
            .take_while(|end| !end.trim().is_empty())
            .find(|end| rest.starts_with(end));
        if let Some(kept) = kept {
            return Ok(start + kept.len());
        }
        // A template that ends every conversation with a token goes on in another way before it, or in its place.
        let end = self.common(&alone, full);
        let text = conversation.messages[turn].text();
        let answer = full.get(start..end).unwrap_or_default();
        match answer.contains(text.trim()) {
            true => Ok(end + self.other_end(answer, &alone[end..], &full[end..])),
            false => Err(self.changes_history(turn)),
        }
    }

    /// The bytes that two texts begin with alike, tokens that are written as words as a whole.
    fn common(&self, text: &str, full: &str) -> usize {
        let same = text.chars().zip(full.chars()).take_while(|(a, b)| a == b);
        let end: usize = same.map(|(c, _)| c.len_utf8()).sum();
        let around = [text, full].into_iter().filter_map(|text| {
            let mut words = found(&self.added, text);
            words.find(|word| word.start < end && end < word.end)
        });
        around.map(|word| word.start).min().unwrap_or(end)
    }

    /// The bytes of the special token that ends an answer, where it ends with another one if nothing follows.
    fn other_end(&self, answer: &str, alone: &str, full: &str) -> usize {
        let first = |text| {
            found(&self.words, text)
                .next()
                .filter(|word| word.start == 0)
        };
        match (self.ends_with_token(answer), first(alone), first(full)) {
            (false, Some(_), Some(word)) => word.end,
            _ => 0,
        }
    }

    fn without_space_at_end<'a>(&self, answer: &'a str) -> &'a str {
        let trimmed = answer.trim_end();
        match self.ends_with_token(trimmed) {
            true => trimmed,
            false => answer,
        }
    }

    fn ends_with_token(&self, text: &str) -> bool {
        let text = text.trim_end();
        let last = found(&self.words, text).last();
        last.is_some_and(|word| word.end == text.len())
    }

    fn changes_history(&self, turn: usize) -> Error {
        let instead = match self.marks_answers {
            true => "",
            false => ", or give a template that marks answers by {% generation %}",
        };
        let message = format!(
            "message {} is written in another way when the conversation goes on, so the chat template does not \
             tell which text is the assistant's; train on the last answer alone (train_on: last){instead}",
            turn + 1
        );
        Error::format(&self.source.path, message)
    }
}

/// The places of words.
fn found<'a>(words: &'a Option<Arc<Regex>>, text: &'a str) -> impl Iterator<Item = Range<usize>> {
    let words = words.iter().flat_map(|words| words.find_iter(text));
    words.flatten().map(|word| word.range())
}
