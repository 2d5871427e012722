//! Projections of one input that are one layer in some models ([`Block::joint_projections`](super::Block)): what each of
//! them gives is then some columns of what the joint one gives.

use burn::tensor::Tensor;

use crate::lora::{LoRALinear, Routes};
use crate::ops::meta::MetaTensor;
use crate::ops::{columns_meta, split};

/// A projection: the layer of its own where there is no joint one, and the size of what it gives.
pub(super) type Part<'a> = (&'a Option<LoRALinear>, usize);

/// What each of the projections gives.
pub(super) fn parts_of<const N: usize>(
    joint: &Option<LoRALinear>,
    parts: [Part<'_>; N],
    x: Tensor<3>,
    routes: Option<&Routes>,
) -> [Tensor<3>; N] {
    match joint {
        Some(joint) => {
            let sizes = parts.map(|(_, size)| size);
            let outputs = split(joint.forward_routed(x, routes), 2, &sizes);
            outputs.try_into().expect("a piece for each size")
        }
        None => parts.map(|(own, _)| part(own).forward_routed(x.clone(), routes)),
    }
}

/// What [`parts_of`] holds in a training.
pub(super) fn parts_meta<const N: usize>(
    joint: &Option<LoRALinear>,
    parts: [Part<'_>; N],
    x: MetaTensor,
) -> [MetaTensor; N] {
    match joint {
        Some(joint) => {
            let joined = joint.meta(x);
            parts.map(|(_, size)| columns_meta(joined.clone(), size))
        }
        None => parts.map(|(own, _)| part(own).meta(x.clone())),
    }
}

fn part(own: &Option<LoRALinear>) -> &LoRALinear {
    own.as_ref()
        .expect("there are the projections or the joint one")
}
