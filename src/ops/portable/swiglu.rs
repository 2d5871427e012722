use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

pub fn forward<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let sigmoid = B::sigmoid(gate.clone());
    B::float_mul(B::float_mul(gate, sigmoid), up)
}

/// With `s = sigmoid(gate)` and `a = gate s`: `(grad up (s + a (1 - s)), grad a)`.
pub fn backward<B: Backend>(
    grad: FloatTensor<B>,
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let sigmoid = B::sigmoid(gate.clone());
    let activation = B::float_mul(gate, sigmoid.clone());
    let rest = B::float_add_scalar(B::float_neg(sigmoid.clone()), 1.0.into());
    let slope = B::float_add(sigmoid, B::float_mul(activation.clone(), rest));
    let gate_grad = B::float_mul(B::float_mul(grad.clone(), up), slope);
    (gate_grad, B::float_mul(grad, activation))
}
