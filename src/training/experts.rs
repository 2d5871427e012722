//! Gradients of experts that no token took.

use std::collections::HashSet;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::adapter::{Path, follow_path};
use crate::llama::TransformerDecoder;
use crate::weight::is_trained;

/// Gives zeros to what is trained of an expert without a gradient, where another expert of the layer has one of the same
/// name. In PyTorch the two are one parameter: the optimizer's moments of all of it decay, and all of it decays.
pub(super) fn add_zeros(model: &TransformerDecoder, grads: &mut GradientsParams) {
    for moe in model.layers.iter().filter_map(|layer| layer.moe.as_ref()) {
        let mut found = Found {
            path: Path::default(),
            grads,
            names: HashSet::new(),
        };
        moe.experts
            .iter()
            .for_each(|expert| expert.visit(&mut found));
        let names = found.names;
        let mut missing = Missing {
            path: Path::default(),
            grads,
            names,
        };
        moe.experts
            .iter()
            .for_each(|expert| expert.visit(&mut missing));
    }
}

/// The names, below an expert, of what has a gradient.
struct Found<'a> {
    path: Path,
    grads: &'a GradientsParams,
    names: HashSet<String>,
}

impl ModuleVisitor for Found<'_> {
    follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.grads.get::<D>(param.id).is_some() {
            self.names.insert(self.path.key());
        }
    }
}

struct Missing<'a> {
    path: Path,
    grads: &'a mut GradientsParams,
    names: HashSet<String>,
}

impl ModuleVisitor for Missing<'_> {
    follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let is_missing = is_trained(param) && self.grads.get::<D>(param.id).is_none();
        if is_missing && self.names.contains(&self.path.key()) {
            let zeros = param.val().inner().zeros_like();
            self.grads.register(param.id, zeros);
        }
    }
}
