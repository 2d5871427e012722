//! The experts of a base in Hugging Face's files: gate and up of each are two tensors there and one weight here; some
//! programs write the weights of all experts as one tensor.

use std::ops::Range;

use super::composed::Form;
use super::keys::to_hf;
use super::weights::Weights;
use crate::Result;
use crate::llama::LlamaConfig;
use crate::llama::names::{expert_of, is_in_mixture};

/// The end of the key of a weight whose rows are two tensors of files, and what those end with, by the names that such
/// modules would have here.
const GATE_UP: &str = ".gate_up_proj.weight";
const HALVES: [&str; 2] = [".w1.weight", ".w3.weight"];

/// Makes the weights of experts of the tensors that the files have, by the keys that those would have here.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if gate or up of an expert has another shape than the model's.
pub(super) fn compose(weights: &mut Weights, config: &LlamaConfig) -> Result<()> {
    for layer in 0..config.num_layers {
        let Some(experts) = config.experts_of(layer) else {
            continue;
        };
        let all = format!("layers.{layer}.moe.experts");
        let (dim, inside) = (config.embed_dim, experts.intermediate_dim);
        for (module, shape) in [("gate_up_proj", [2 * inside, dim]), ("w2", [dim, inside])] {
            let stacked = [experts.count, shape[0], shape[1]];
            let key = format!("{all}.{module}");
            if weights.dense_shape(&key) == Some(&stacked) {
                let keys =
                    (0..experts.count).map(|expert| format!("{all}.{expert}.{module}.weight"));
                let numbers = shape[0] * shape[1];
                let stretch = |expert| Form::Stretch(expert * numbers..(expert + 1) * numbers);
                weights.split(&key, keys.collect(), &shape, stretch);
            }
        }
        for expert in 0..experts.count {
            let of = HALVES.map(|half| format!("{all}.{expert}{half}"));
            for half in &of {
                weights.require_shape(half, &[inside, dim])?;
            }
            weights.join(&format!("{all}.{expert}{GATE_UP}"), of, Form::Below);
        }
    }
    Ok(())
}

/// The name of a weight, or a part of one, in Hugging Face's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HfTensor {
    pub name: String,
    /// Which half of the rows it has, if not all.
    pub half: Option<usize>,
}

impl HfTensor {
    /// The rows of a weight of so many that it has.
    pub fn rows(&self, rows: usize) -> Range<usize> {
        match self.half {
            None => 0..rows,
            Some(half) => half * rows / 2..(half + 1) * rows / 2,
        }
    }
}

/// The tensors of Hugging Face's files that a weight is, by its key; none if it has no name there.
pub(super) fn hf_tensors(key: &str) -> Vec<HfTensor> {
    let tensor = |key: &str, half| to_hf(key).map(|name| HfTensor { name, half });
    match key.strip_suffix(GATE_UP).filter(|_| is_of_expert(key)) {
        None => tensor(key, None).into_iter().collect(),
        Some(expert) => {
            let halves = HALVES.iter().enumerate();
            let tensors =
                halves.filter_map(|(index, half)| tensor(&format!("{expert}{half}"), Some(index)));
            tensors.collect()
        }
    }
}

/// The key of the weight of which a tensor is a part or the whole, by the key that the tensor would have here, and which
/// half of the rows it is.
pub(super) fn whole_of(key: String) -> (String, Option<usize>) {
    let mut halves = HALVES.iter().enumerate();
    let found = halves.find_map(|(index, half)| Some((key.strip_suffix(half)?, index)));
    match found.filter(|_| is_of_expert(&key)) {
        Some((expert, half)) => (format!("{expert}{GATE_UP}"), Some(half)),
        None => (key, None),
    }
}

/// Whether a tensor has the weights of all experts of a layer, by the key that it would have here.
pub(super) fn is_stacked(key: &str) -> bool {
    is_in_mixture(key) && key.contains(".experts.") && !is_of_expert(key)
}

fn is_of_expert(key: &str) -> bool {
    expert_of(key).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_and_up_of_an_expert_are_two_tensors() {
        let key = "layers.2.moe.experts.5.gate_up_proj.weight";
        let tensors = hf_tensors(key);
        let names: Vec<&str> = tensors.iter().map(|tensor| &*tensor.name).collect();
        let expert = "model.layers.2.mlp.experts.5";
        let [gate, up] = ["gate", "up"].map(|module| format!("{expert}.{module}_proj.weight"));
        assert_eq!(names, [&gate, &up]);
        assert_eq!([0, 1].map(|half| tensors[half].rows(6)), [0..3, 3..6]);
        for (half, ours) in ["w1", "w3"].into_iter().enumerate() {
            let ours = format!("layers.2.moe.experts.5.{ours}.weight");
            assert_eq!(whole_of(ours), (key.to_owned(), Some(half)));
        }
    }

    #[test]
    fn other_weights_are_one() {
        for key in [
            "layers.2.moe.experts.5.w2.weight",
            "layers.2.moe.gate.weight",
            "layers.2.mlp.w1.weight",
        ] {
            assert_eq!(hf_tensors(key).len(), 1);
            assert_eq!(hf_tensors(key)[0].rows(6), 0..6);
            assert_eq!(whole_of(key.to_owned()), (key.to_owned(), None));
            assert!(!is_stacked(key));
        }
        assert!(is_stacked("layers.2.moe.experts.gate_up_proj"));
        assert_eq!(hf_tensors("head.weight"), []);
    }
}
