//! The tiny tokenizer as the bytes of a SentencePiece model: the protobuf written by hand.

/// What a model says of itself; the defaults are those of Llama's models.
#[derive(Clone, Copy)]
pub struct Model {
    /// 1 unigram, 2 BPE.
    pub model_type: u64,
    pub byte_fallback: bool,
    pub charsmap: &'static [u8],
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub whitespace_as_suffix: bool,
    /// Pieces after the special ones and the bytes, each with its type (1 normal, 4 user-defined, 5 unused).
    pub pieces: &'static [(&'static str, u64)],
    /// The score of each of these pieces, by its place.
    pub score: fn(usize) -> f32,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            model_type: 2,
            byte_fallback: true,
            charsmap: &[],
            add_dummy_prefix: true,
            remove_extra_whitespaces: false,
            whitespace_as_suffix: false,
            pieces: &[
                ("he", 1),
                ("ll", 1),
                ("\u{2581}he", 1),
                ("llo", 1),
                ("\u{2581}hello", 1),
                ("\u{2581}", 1),
                ("h", 1),
                ("e", 1),
                ("l", 1),
                ("o", 1),
                ("\u{2581}\u{2581}", 1),
                ("!", 1),
            ],
            score: |place| -(place as f32),
        }
    }
}

impl Model {
    pub fn bytes(&self) -> Vec<u8> {
        let mut model = Vec::new();
        let mut push = |text: &str, score: f32, kind: u64| {
            let mut piece = Vec::new();
            field(&mut piece, 1, text.as_bytes());
            piece.push((2 << 3) | 5);
            piece.extend(score.to_le_bytes());
            number(&mut piece, 3, kind);
            field(&mut model, 1, &piece);
        };
        push("<unk>", 0.0, 2);
        push("<s>", 0.0, 3);
        push("</s>", 0.0, 3);
        for byte in 0..=255u8 {
            push(&format!("<0x{byte:02X}>"), 0.0, 6);
        }
        for (place, (text, kind)) in self.pieces.iter().enumerate() {
            push(text, (self.score)(place), *kind);
        }
        field(&mut model, 2, &self.trainer());
        field(&mut model, 3, &self.normalizer());
        model
    }

    fn trainer(&self) -> Vec<u8> {
        let mut spec = Vec::new();
        number(&mut spec, 3, self.model_type);
        number(&mut spec, 24, self.whitespace_as_suffix.into());
        number(&mut spec, 35, self.byte_fallback.into());
        spec
    }

    fn normalizer(&self) -> Vec<u8> {
        let mut spec = Vec::new();
        field(&mut spec, 2, self.charsmap);
        number(&mut spec, 3, self.add_dummy_prefix.into());
        number(&mut spec, 4, self.remove_extra_whitespaces.into());
        spec
    }
}

fn field(out: &mut Vec<u8>, tag: u64, bytes: &[u8]) {
    varint(out, (tag << 3) | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn number(out: &mut Vec<u8>, tag: u64, value: u64) {
    varint(out, tag << 3);
    varint(out, value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
