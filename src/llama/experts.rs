use serde::{Deserialize, Serialize};

use crate::settings::setters;
use crate::{Error, Result};

/// The experts that some layers have in the place of one feed-forward block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Experts {
    /// How many a layer has.
    pub count: usize,
    /// How many of them a token takes.
    pub per_token: usize,
    /// The width inside of one.
    pub intermediate_dim: usize,
    /// Whether the weights of a token's experts are divided by their sum.
    #[serde(default)]
    pub is_normalized: bool,
    /// Every so many-th layer has experts: of 2 the second, the fourth and so on.
    #[serde(default = "one")]
    pub layer_step: usize,
    /// Layers that have none all the same.
    #[serde(default)]
    pub dense_layers: Vec<usize>,
}

impl Experts {
    /// Experts in each layer, whose weights are not normalised.
    pub fn new(count: usize, per_token: usize, intermediate_dim: usize) -> Self {
        Self {
            count,
            per_token,
            intermediate_dim,
            is_normalized: false,
            layer_step: one(),
            dense_layers: Vec::new(),
        }
    }

    setters! {
        with_normalized => is_normalized: bool,
        with_layer_step => layer_step: usize,
        with_dense_layers => dense_layers: Vec<usize>,
    }

    /// Whether a layer has them.
    pub(super) fn are_in(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.layer_step) && !self.dense_layers.contains(&layer)
    }

    pub(super) fn validate(&self) -> Result<()> {
        let Self {
            count, per_token, ..
        } = self;
        let message = match () {
            () if *count == 0 || self.intermediate_dim == 0 || self.layer_step == 0 => {
                "their number, width and step of layers must be at least 1".to_owned()
            }
            () if !(1..=*count).contains(per_token) => {
                format!("a token cannot take {per_token} of {count} experts")
            }
            () => return Ok(()),
        };
        Err(Error::InvalidArgument {
            name: "experts",
            message,
        })
    }
}

fn one() -> usize {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_layers_have_experts() {
        let layers = |experts: &Experts| Vec::from_iter((0..6).filter(|i| experts.are_in(*i)));
        let experts = Experts::new(4, 2, 8);
        assert_eq!(layers(&experts), [0, 1, 2, 3, 4, 5]);
        let experts = experts.with_layer_step(2);
        assert_eq!(layers(&experts), [1, 3, 5]);
        assert_eq!(layers(&experts.with_dense_layers(vec![3, 4])), [1, 5]);
    }

    #[test]
    fn what_makes_up_no_mixture_is_refused() {
        assert!(Experts::new(4, 4, 8).validate().is_ok());
        for (experts, word) in [
            (Experts::new(0, 0, 8), "number"),
            (Experts::new(4, 2, 0), "width"),
            (Experts::new(4, 2, 8).with_layer_step(0), "step"),
            (Experts::new(4, 5, 8), "5 of 4"),
            (Experts::new(4, 0, 8), "0 of 4"),
        ] {
            let message = experts.validate().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
