//! Projections of one input that are one layer in some models ([`Block::joint_projections`](super::Block)): what each of
//! them gives is then some columns of what the joint one gives.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::lora::{LoRALinear, Routes};
use crate::ops::meta::MetaTensor;
use crate::ops::{columns, columns_meta};

/// A projection: the layer of its own, or else its columns of what the joint one gives.
pub(super) type Part<'a> = (&'a Option<LoRALinear>, Range<usize>);

/// What all parts are formed of: what the joint projection gives, or the input itself where there is none.
pub(super) fn joined(
    joint: &Option<LoRALinear>,
    x: Tensor<3>,
    routes: Option<&Routes>,
) -> Tensor<3> {
    match joint {
        Some(joint) => joint.forward_routed(x, routes),
        None => x,
    }
}

/// What a projection gives.
pub(super) fn part_of(
    joined: Tensor<3>,
    (own, range): Part<'_>,
    routes: Option<&Routes>,
) -> Tensor<3> {
    match own {
        Some(own) => own.forward_routed(joined, routes),
        None => columns(joined, range),
    }
}

/// What [`joined`] holds in a training.
pub(super) fn joined_meta(joint: &Option<LoRALinear>, x: MetaTensor) -> MetaTensor {
    match joint {
        Some(joint) => joint.meta(x),
        None => x,
    }
}

/// What [`part_of`] holds in a training.
pub(super) fn part_meta(joined: MetaTensor, (own, range): Part<'_>) -> MetaTensor {
    match own {
        Some(own) => own.meta(joined),
        None => columns_meta(joined, range.len()),
    }
}
