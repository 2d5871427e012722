use serde::{Deserialize, Serialize};

/// Which tokens before its own a query sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Span {
    /// All of them.
    #[default]
    Full,
    /// The last of them, so many with its own (a sliding window).
    Window(usize),
    /// Those of its chunk: the sequence is cut into chunks of so many tokens.
    Chunk(usize),
}

impl Span {
    /// The first position that the query at `position` sees.
    pub(crate) fn first_seen(self, position: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::Window(tokens) => (position + 1).saturating_sub(tokens),
            Self::Chunk(tokens) => position / tokens * tokens,
        }
    }

    /// The number of positions before `position` that it or a later one sees: those that a cache keeps.
    pub(super) fn seen_before(self, position: usize) -> usize {
        position - self.first_seen(position).min(position)
    }

    /// The tokens of a window or chunk.
    pub(crate) fn tokens(self) -> Option<usize> {
        match self {
            Self::Full => None,
            Self::Window(tokens) | Self::Chunk(tokens) => Some(tokens),
        }
    }
}

/// How a layer rotates queries and keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rotary {
    /// By the model's rotary embedding.
    #[default]
    Global,
    /// By the one of local layers, see [`LlamaConfig::local_rope`](super::LlamaConfig::local_rope).
    Local,
    /// Not at all.
    None,
}

/// What the attention of a layer sees, and how it is told positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerAttention {
    /// Which tokens a query sees.
    pub span: Span,
    /// How queries and keys are rotated.
    pub rotary: Rotary,
}

impl LayerAttention {
    /// The shortest list that, repeated, gives these layers; empty where all are the default.
    pub fn pattern(layers: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut layers: Vec<_> = layers.into_iter().collect();
        let repeats = |len: &usize| (*len..layers.len()).all(|i| layers[i] == layers[i - len]);
        let shortest = (1..layers.len()).find(repeats);
        layers.truncate(shortest.unwrap_or(layers.len()));
        match layers[..] {
            [only] if only == Self::default() => Vec::new(),
            _ => layers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_sees_itself_and_what_its_span_has_before_it() {
        let seen = |span: Span| [0, 2, 3, 7].map(|position| span.first_seen(position));
        assert_eq!(seen(Span::Full), [0, 0, 0, 0]);
        assert_eq!(seen(Span::Window(3)), [0, 0, 1, 5]);
        assert_eq!(seen(Span::Window(1)), [0, 2, 3, 7]);
        assert_eq!(seen(Span::Chunk(3)), [0, 0, 3, 6]);
        assert_eq!(Span::Window(3).seen_before(7), 2);
        assert_eq!(Span::Chunk(3).seen_before(6), 0);
        assert_eq!(Span::Full.seen_before(7), 7);
    }

    #[test]
    fn a_pattern_is_the_shortest() {
        let layer = |tokens| LayerAttention {
            span: Span::Window(tokens),
            ..Default::default()
        };
        let full = LayerAttention::default();
        let pattern = |layers: &[_]| LayerAttention::pattern(layers.iter().copied());
        assert_eq!(pattern(&[full, full]), []);
        assert_eq!(pattern(&[layer(2), layer(2)]), [layer(2)]);
        assert_eq!(pattern(&[layer(2), full, layer(2)]), [layer(2), full]);
        assert_eq!(pattern(&[full, full, layer(2)]), [full, full, layer(2)]);
        assert_eq!(pattern(&[]), []);
    }
}
