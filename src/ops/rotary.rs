use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use super::flex;

/// Turns the pair of the elements i and `i + head_dim / 2` of each head by an angle: `(x₁ cos - x₂
/// sin, x₂ cos + x₁ sin)`. Su et al., <https://arxiv.org/abs/2104.09864>.
///
/// # Shapes
/// - `x`: `[batch, seq, heads, head_dim]`, output the same
/// - `cos`, `sin`: `[batch or 1, seq, 1, head_dim / 2]`
///
/// # Panics
/// If the shapes do not fit.
pub fn rotary(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let [batch, seq, _, head_dim] = x.dims();
    let [rows, ..] = cos.dims();
    let angles = [rows, seq, 1, head_dim / 2];
    let fits = (rows == 1 || rows == batch) && cos.dims() == angles && sin.dims() == angles;
    assert!(fits, "the angles do not fit the heads");
    #[cfg(feature = "flex")]
    if flex::takes(&x) {
        return flex::rotary(x, cos, sin);
    }
    let (cos, sin) = (cos.cast(x.dtype()), sin.cast(x.dtype()));
    let first = x.clone().narrow(3, 0, head_dim / 2);
    let second = x.narrow(3, head_dim / 2, head_dim / 2);
    let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let turned_second = second * cos + first * sin;
    Tensor::cat(vec![turned_first, turned_second], 3)
}
