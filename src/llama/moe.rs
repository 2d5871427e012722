use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Int, Tensor};

use super::{Context, Experts, FeedForward, LlamaConfig};
use crate::lora::{LoRALinear, Routes};
use crate::ops::meta::{F32, MetaOp, MetaTensor};
use crate::ops::{rows_meta, split};

/// A mixture of experts in the place of the feed-forward block: a router gives each token weights, and the token is the
/// weighted sum of what the likeliest experts make of it. No expert has a capacity: no token is dropped.
///
/// ```text
/// p = softmax(gate x)          y = Σ pₑ · expertₑ(x), e among the k largest of p
/// ```
///
/// Fedus et al., <https://arxiv.org/abs/2101.03961>; of Qwen3, <https://arxiv.org/abs/2505.09388>. The softmax is over
/// all experts and in f32; with [`Experts::is_normalized`] the k weights are divided by their sum.
///
/// Which experts a token takes is decided on the host: the probabilities are read, so that a GPU is waited for once a
/// layer.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct MixtureOfExperts {
    /// The router, `embed_dim -> count`.
    pub gate: LoRALinear,
    /// The experts, whose gate and up are one layer.
    pub experts: Vec<FeedForward>,
    #[module(skip)]
    per_token: usize,
    #[module(skip)]
    is_normalized: bool,
}

impl MixtureOfExperts {
    pub(super) fn new(config: &LlamaConfig, experts: &Experts, device: &Device) -> Self {
        let (dim, inside) = (config.embed_dim, experts.intermediate_dim);
        let activation = config.block.activation;
        let expert = |_| FeedForward::joint(dim, inside, activation, device);
        Self {
            gate: LoRALinear::plain(dim, experts.count, false, device),
            experts: (0..experts.count).map(expert).collect(),
            per_token: experts.per_token,
            is_normalized: experts.is_normalized,
        }
    }

    /// Applies the experts of each token.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, embed_dim]`, output the same
    ///
    /// # Panics
    /// If the last dimension of `x` is not `embed_dim`.
    pub fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let routes = context.routes.as_ref();
        let shape @ [_, _, dim] = x.dims();
        let probabilities = self.probabilities(x.clone(), routes);
        let choice = Choice::of(&probabilities, self.per_token);
        let weights = self.weights(probabilities, &choice).cast(x.dtype());
        let outputs = self.of_experts(x, &choice, routes);
        // Each token's experts beside each other: no two rows are added to one place.
        let places = Tensor::from_ints(&choice.places[..], &outputs.device());
        let outputs = outputs.select(0, places);
        let outputs = outputs.reshape([-1, self.per_token as i32, dim as i32]);
        let weighted: Tensor<3> = outputs * weights.unsqueeze_dim::<3>(2);
        weighted.sum_dim(1).reshape(shape)
    }

    /// What the experts make of their tokens, one after the other.
    ///
    /// # Shapes
    /// - output: `[batch · seq · per_token, embed_dim]`
    fn of_experts(&self, x: Tensor<3>, choice: &Choice, routes: Option<&Routes>) -> Tensor<2> {
        let [_, seq, _] = x.dims();
        let tokens = choice.tokens.concat();
        let tokens = Tensor::from_ints(&tokens[..], &x.device());
        let (chosen, sizes) = choice.used();
        let rows = split(x.flatten::<2>(0, 1).select(0, tokens), 0, &sizes);
        let outputs = chosen.into_iter().zip(rows).map(|(index, rows)| {
            let expert = &self.experts[index];
            let output = match routes {
                None => expert.apply(rows.unsqueeze::<3>(), None),
                // Each token with its own adapter is a row of its own.
                Some(routes) => {
                    let row_of = |token: &i32| *token as usize / seq;
                    let routes = routes.of_rows(choice.tokens[index].iter().map(row_of));
                    expert.apply(rows.unsqueeze_dim::<3>(1), Some(&routes))
                }
            };
            output.flatten::<2>(0, 1)
        });
        Tensor::cat(outputs.collect(), 0)
    }

    /// The router's probabilities, f32.
    ///
    /// # Shapes
    /// - output: `[batch · seq, count]`
    fn probabilities(&self, x: Tensor<3>, routes: Option<&Routes>) -> Tensor<2> {
        let logits = self.gate.forward_routed(x, routes).cast(DType::F32);
        softmax(logits, 2).flatten(0, 1)
    }

    /// The weights of each token's experts, `[batch · seq, per_token]`.
    fn weights(&self, probabilities: Tensor<2>, choice: &Choice) -> Tensor<2> {
        let experts = Tensor::<1, Int>::from_ints(&choice.experts[..], &probabilities.device());
        let weights = probabilities.gather(1, experts.reshape([-1, self.per_token as i32]));
        match self.is_normalized {
            true => weights.clone() / weights.sum_dim(1),
            false => weights,
        }
    }

    /// What [`Self::forward`] holds in a training: that of tokens which are dealt out evenly. However they are, their
    /// rows are as many together; an expert that has more of them forms more at a time.
    pub(super) fn meta(&self, x: MetaTensor) -> MetaTensor {
        let (tokens, dim) = (x.rows, x.width);
        let chosen = tokens * self.per_token;
        let weights = self.weights_meta(x.clone());
        let count = self.experts.len();
        let gathered = MetaOp::of([x]).rows(chosen).output(dim);
        let outputs = self.experts.iter().enumerate().map(|(index, expert)| {
            let rows = chosen / count + usize::from(index < chosen % count);
            expert.meta(rows_meta(gathered.clone(), rows))
        });
        let joined = MetaOp::of_all(outputs.collect()).rows(chosen).output(dim);
        let outputs = MetaOp::of([joined]).output(dim);
        // Each factor is kept for the gradient of the other.
        let factors = [(&outputs, &weights), (&weights, &outputs)];
        let op = MetaOp::of([outputs.clone(), weights.clone()]);
        let kept = factors.iter().filter(|(_, other)| other.is_tracked());
        let op = kept.fold(op, |op, (factor, _)| op.keeps(factor));
        let weighted = op.output(dim);
        MetaOp::of([weighted]).rows(tokens).output(dim)
    }

    /// A row for each of a token's experts.
    fn weights_meta(&self, x: MetaTensor) -> MetaTensor {
        let (tokens, size) = (x.rows, x.ledger().activation_size());
        let f32_width = self.experts.len() * F32 / size;
        let logits = self.gate.meta(x);
        let ledger = logits.ledger().clone();
        let probabilities = MetaOp::of([logits]).keeps_output().output(f32_width);
        let chosen = tokens * self.per_token;
        // Beside it the expert of a row, its token and its place.
        let row = F32 + 3 * size_of::<i32>();
        let kept = ledger.tensor(chosen, row / size);
        let op = MetaOp::of([probabilities]).rows(chosen).keeps(&kept);
        op.output(1)
    }
}

/// Which experts the tokens take.
struct Choice {
    /// Those of each token, token by token.
    experts: Vec<i32>,
    /// The tokens of each expert.
    tokens: Vec<Vec<i32>>,
    /// Where the rows of each token's experts lie if those of the experts follow each other, token by token.
    places: Vec<i32>,
}

impl Choice {
    /// The experts that have tokens, and how many.
    fn used(&self) -> (Vec<usize>, Vec<usize>) {
        let counts = self.tokens.iter().map(Vec::len).enumerate();
        counts.filter(|(_, count)| *count > 0).unzip()
    }

    /// The likeliest ones by probabilities of `[tokens, count]`.
    fn of(probabilities: &Tensor<2>, per_token: usize) -> Self {
        let [_, count] = probabilities.dims();
        let data = probabilities.clone().detach().into_data();
        let values: Vec<f32> = data.try_into_vec().expect("values of f32");
        let experts = values.chunks(count).flat_map(|row| largest(row, per_token));
        Self::new(experts.collect(), count, per_token)
    }

    fn new(experts: Vec<i32>, count: usize, per_token: usize) -> Self {
        let mut tokens = vec![Vec::new(); count];
        for (token, experts) in (0..).zip(experts.chunks(per_token)) {
            for expert in experts {
                tokens[*expert as usize].push(token);
            }
        }
        // Where the next row of each expert lies.
        let mut next: Vec<i32> = tokens
            .iter()
            .scan(0, |sum, tokens| {
                let start = *sum;
                *sum += tokens.len() as i32;
                Some(start)
            })
            .collect();
        let places = experts.iter().map(|expert| {
            let place = &mut next[*expert as usize];
            *place += 1;
            *place - 1
        });
        let places = places.collect();
        Self {
            experts,
            tokens,
            places,
        }
    }
}

/// The indices of the largest numbers; of equal ones the first.
fn largest(values: &[f32], count: usize) -> Vec<i32> {
    let mut indices = Vec::from_iter(0..values.len() as i32);
    let value = |index: &i32| values[*index as usize];
    indices.select_nth_unstable_by(count - 1, |a, b| {
        value(b).total_cmp(&value(a)).then(a.cmp(b))
    });
    indices.truncate(count);
    indices
}

impl ModuleDisplay for MixtureOfExperts {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_show_num_parameters(false)
            .optional()
    }

    /// One of the experts stands for all.
    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("gate", &self.gate)
            .add("count", &self.experts.len())
            .add("per_token", &self.per_token)
            .add("expert", &self.experts[0])
            .optional()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_chosen_and_of_equal_ones_the_first() {
        let sorted = |values: &[f32], count| {
            let mut found = largest(values, count);
            found.sort();
            found
        };
        assert_eq!(sorted(&[0.1, 0.4, 0.2, 0.3], 2), [1, 3]);
        assert_eq!(sorted(&[0.1, 0.3, 0.3, 0.3], 2), [1, 2]);
        assert_eq!(sorted(&[0.5, 0.5], 2), [0, 1]);
    }

    /// Experts 2 and 0 of the first token, 2 and 1 of the second: their rows are 0 | 1 | 0 1.
    #[test]
    fn each_row_of_an_expert_is_at_its_place() {
        let choice = Choice::new(vec![2, 0, 2, 1], 4, 2);
        assert_eq!(choice.tokens, [vec![0], vec![1], vec![0, 1], vec![]]);
        assert_eq!(choice.places, [2, 0, 3, 1]);
    }
}
