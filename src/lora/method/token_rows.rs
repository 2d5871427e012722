//! Single rows of an embedding, trained as copies: PEFT's `trainable_token_indices`.

use burn::tensor::module::embedding;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{FirstValue, Kept, LayerKind, LayerParams, LayerShape, Method, ParamSpec};
use crate::lora::params::{AdapterParams, AdapterSettings};
use crate::lora::plain::PlainLinear;
use crate::ops::{DropoutMask, linear};
use crate::weight::{FrozenWeight, untracked};

/// Rows of an embedding.
pub static TOKEN_ROWS: TokenRows = TokenRows;

/// See [`TOKEN_ROWS`].
#[derive(Debug)]
pub struct TokenRows;

const ROWS: &str = "token_rows";

impl Method for TokenRows {
    fn name(&self) -> &'static str {
        "token_rows"
    }

    fn adapts(&self, kind: LayerKind) -> bool {
        kind != LayerKind::Norm
    }

    fn params(&self, layer: &LayerShape, settings: &AdapterSettings) -> Vec<ParamSpec> {
        let shape = [settings.token_indices.len(), layer.dims[1]];
        let first = FirstValue::MatrixOfLayer(first_rows);
        let name = "token_adapter.trainable_tokens_delta";
        vec![ParamSpec::matrix(ROWS, name, shape, first)]
    }

    /// The projection to the vocabulary of a model whose output is its embedding.
    fn add_update(
        &self,
        adapter: &AdapterParams,
        _base: &PlainLinear,
        x: Tensor<3>,
        y: Tensor<3>,
        _mask: Option<DropoutMask>,
    ) -> Tensor<3> {
        let [_, _, vocab_size] = y.dims();
        let (row_of, is_other) = places(adapter, vocab_size, &y);
        let new = linear(x, with_zero_row(adapter)).select(2, row_of);
        y * is_other.unsqueeze() + new
    }

    fn embed(
        &self,
        adapter: &AdapterParams,
        weight: &FrozenWeight,
        ids: Tensor<1, Int>,
        rows: Tensor<2>,
    ) -> Tensor<2> {
        let [vocab_size, _] = weight.shape();
        let (row_of, is_other) = places(adapter, vocab_size, &rows);
        let is_other = is_other.select(0, ids.clone()).unsqueeze_dim::<2>(1);
        let chosen = row_of.select(0, ids);
        let new = embedding(with_zero_row(adapter), chosen.unsqueeze::<2>());
        let dtype = rows.dtype();
        rows * is_other + new.squeeze_dim::<2>(0).cast(dtype)
    }

    fn merge(
        &self,
        adapter: &AdapterParams,
        _layer: &LayerShape,
        _base: &Tensor<2>,
        weight: Tensor<2>,
    ) -> Tensor<2> {
        let [vocab_size, _] = weight.dims();
        let (row_of, is_other) = places(adapter, vocab_size, &weight);
        let new = untracked(with_zero_row(adapter)).cast(DType::F32);
        weight * is_other.unsqueeze_dim(1) + new.select(0, row_of)
    }

    fn kept(&self, _layer: &LayerShape, _settings: &AdapterSettings) -> Kept {
        Kept::per_token(0).with_outputs_at_once(2)
    }
}

fn first_rows(layer: &LayerParams, settings: &AdapterSettings) -> Tensor<2> {
    let weight = layer.weight.as_ref().expect("the layer is an embedding");
    let weight = weight.to_f32();
    let indices: Vec<i32> = settings.token_indices.iter().map(|i| *i as i32).collect();
    let indices = Tensor::<1, Int>::from_ints(&indices[..], &weight.device());
    weight.select(0, indices)
}

/// The rows with one of zeros after them, `[indices + 1, dim]`.
fn with_zero_row(adapter: &AdapterParams) -> Tensor<2> {
    let rows = adapter.matrix(ROWS);
    let zero = rows.zeros_like().narrow(0, 0, 1).detach();
    Tensor::cat(vec![rows, zero], 0)
}

/// For each token its row in [`with_zero_row`], and 1 where that is the row of zeros, in the type of `like`.
fn places<const D: usize>(
    adapter: &AdapterParams,
    vocab_size: usize,
    like: &Tensor<D>,
) -> (Tensor<1, Int>, Tensor<1>) {
    let indices = &adapter.settings().token_indices;
    let mut row_of = vec![indices.len() as i32; vocab_size];
    for (row, index) in indices.iter().enumerate() {
        row_of[*index] = row as i32;
    }
    let is_other = |row: &i32| f32::from(*row as usize == indices.len());
    let is_other: Vec<f32> = row_of.iter().map(is_other).collect();
    let device = like.device();
    let is_other = TensorData::new(is_other, [vocab_size]);
    let is_other = Tensor::<1>::from_data(is_other, (&device, DType::F32)).cast(like.dtype());
    (Tensor::from_ints(&row_of[..], &device), is_other)
}
