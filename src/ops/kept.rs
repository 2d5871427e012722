/// What a training holds for a linear layer or an embedding, in numbers of the activations' type unless said
/// otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// Per token, until the backward pass, beside the layer's input.
    pub per_token: usize,
    /// Whether the layer's input is kept too, if anything is trained. Layers share it.
    pub keeps_input: bool,
    /// Tensors of the output's size that exist while the output or the gradients are formed: the output or its
    /// gradient, and kept ones, among them.
    pub outputs_at_once: usize,
    /// Tensors of the input's size that exist beside its gradient while that is formed.
    pub inputs_at_once: usize,
    /// How many f32 copies of the weight's size the forward pass forms and drops.
    pub weight_copies: usize,
}

impl Kept {
    /// The layer's input and one tensor of so many numbers a token.
    pub fn per_token(numbers: usize) -> Self {
        Self {
            per_token: numbers,
            keeps_input: true,
            outputs_at_once: 1,
            inputs_at_once: 0,
            weight_copies: 0,
        }
    }

    /// The same, with the layer's input or without it.
    pub fn with_input(mut self, keeps_input: bool) -> Self {
        self.keeps_input = keeps_input;
        self
    }

    /// The same, with this many tensors of the output's size at a time.
    pub fn with_outputs_at_once(mut self, count: usize) -> Self {
        self.outputs_at_once = count;
        self
    }

    /// The same, with this many tensors of the input's size beside its gradient.
    pub fn with_inputs_at_once(mut self, count: usize) -> Self {
        self.inputs_at_once = count;
        self
    }

    /// The same, with so many copies of the weight.
    pub fn with_weight_copies(mut self, count: usize) -> Self {
        self.weight_copies = count;
        self
    }
}
