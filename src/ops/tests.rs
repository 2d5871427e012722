//! Fused and portable bodies against plain compositions of tensor operations: outputs and gradients.

mod packed;

use std::cell::Cell;
use std::ops::Range;

#[cfg(feature = "cube")]
use burn::backend::DispatchDevice;
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Bool, DType, Device, Distribution, Int, Tensor, TensorData};

use super::*;

thread_local! {
    /// How many tensors a test has drawn.
    static DRAWN: Cell<usize> = const { Cell::new(0) };
}

fn device() -> Device {
    Device::default().autodiff()
}

/// Numbers between -2 and 2, the same in every run: the backend's generator is shared by all tests.
fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let seed = DRAWN.replace(DRAWN.get() + 1);
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 4093) as f32 / 1023.0 - 2.0;
    let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
    Tensor::from_data(TensorData::new(numbers, shape), &device()).require_grad()
}

fn assert_close<const D: usize>(a: Tensor<D>, b: Tensor<D>, what: &str) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let difference = (a - b.clone()).abs().max().into_scalar::<f32>();
    let size = b.abs().max().into_scalar::<f32>().max(1.0);
    assert!(difference < 1e-5 * size, "{what}: {difference} of {size}");
}

/// `op` of `inputs` and its gradients, for a loss in which every output weighs otherwise.
fn run<const D: usize, const N: usize, const E: usize>(
    inputs: &[Tensor<D>; N],
    op: impl Fn([Tensor<D>; N]) -> Tensor<E>,
) -> (Tensor<E>, [Tensor<D>; N]) {
    let inputs = inputs.clone().map(|input| input.detach().require_grad());
    let out = op(inputs.clone());
    let weights = Tensor::<1, Int>::arange(0..out.shape().num_elements() as i64, &out.device());
    let weights = (weights.float() * 0.37).sin().reshape(out.dims());
    let grads = (out.clone() * weights).sum().backward();
    let grads = inputs.map(|input| input.grad(&grads).expect("every input has a gradient"));
    (out.inner(), grads)
}

fn assert_same<const D: usize, const N: usize, const E: usize>(
    (out, grads): (Tensor<E>, [Tensor<D>; N]),
    (expected, expected_grads): (Tensor<E>, [Tensor<D>; N]),
) {
    assert_close(out, expected, "output");
    for (index, (grad, expected)) in grads.into_iter().zip(expected_grads).enumerate() {
        assert_close(grad, expected, &format!("gradient {index}"));
    }
}

fn portable<T>(run: impl FnOnce() -> T) -> T {
    set_fused(false);
    let result = run();
    set_fused(true);
    result
}

fn assert_fused_equals_portable<const D: usize, const N: usize, const E: usize>(
    inputs: [Tensor<D>; N],
    op: impl Fn([Tensor<D>; N]) -> Tensor<E>,
) {
    assert_same(run(&inputs, &op), portable(|| run(&inputs, &op)));
}

/// Compares the portable body, with its own backward pass, and the fused one with a composition of
/// tensor operations, differentiated by autodiff.
fn assert_equals_plain<const D: usize, const N: usize, const E: usize>(
    inputs: [Tensor<D>; N],
    op: impl Fn([Tensor<D>; N]) -> Tensor<E>,
    plain: impl Fn([Tensor<D>; N]) -> Tensor<E>,
) {
    let expected = run(&inputs, plain);
    assert_same(portable(|| run(&inputs, &op)), expected.clone());
    assert_same(run(&inputs, &op), expected);
}

fn plain_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cubic = x.clone() + x.clone().powi_scalar(3) * 0.044715;
    let tanh = (cubic * (2.0 / std::f64::consts::PI).sqrt()).tanh();
    x * (tanh + 1.0) * 0.5
}

fn plain_rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let mean_square = x.clone().square().mean_dim(D - 1);
    x / (mean_square + eps).sqrt() * weight.unsqueeze()
}

fn plain_rotary(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let ([.., head_dim], [.., pairs]) = (x.dims(), cos.dims());
    let part = |start, width| x.clone().narrow(3, start, width);
    let [first, second] = [part(0, pairs), part(pairs, pairs)];
    let turned = [
        first.clone() * cos.clone() - second.clone() * sin.clone(),
        second * cos + first * sin,
    ];
    let kept = (2 * pairs < head_dim).then(|| part(2 * pairs, head_dim - 2 * pairs));
    Tensor::cat(turned.into_iter().chain(kept).collect(), 3)
}

fn plain_normed_rotary(x: Tensor<4>, weight: Tensor<1>, [cos, sin]: [Tensor<4>; 2]) -> Tensor<4> {
    let (dims, [width]) = (x.dims(), weight.dims());
    let rows = dims.iter().product::<usize>() / width;
    let normed = plain_rms_norm(x.reshape([rows, width]), weight, 1e-2);
    plain_rotary(normed.reshape(dims), cos, sin)
}

/// With keys and values repeated for the heads that share them, and all scores at once.
fn plain_attention(
    [q, k, v]: [Tensor<4>; 3],
    mask: &AttentionMask,
    Scores { scale, cap }: Scores,
) -> Tensor<4> {
    let [_, _, heads, head_dim] = q.dims();
    let [batch, keys, kv_heads, _] = k.dims();
    let repeated = |x: Tensor<4>| {
        let x: Tensor<5> = x.unsqueeze_dim::<5>(3).repeat_dim(3, heads / kv_heads);
        x.reshape([batch, keys, heads, head_dim]).swap_dims(1, 2)
    };
    let scores = sums_of_products(q.swap_dims(1, 2), repeated(k).swap_dims(2, 3));
    let scores = match cap {
        None => scores * scale,
        Some(cap) => (scores * (scale / cap)).tanh() * cap,
    };
    let hidden = hidden(mask, &v.device());
    let weights = softmax(scores.mask_fill(hidden.clone(), f32::MIN), 3);
    // Or the weights of a query that sees nothing would be alike.
    sums_of_products(weights.mask_fill(hidden, 0.0), repeated(v)).swap_dims(1, 2)
}

/// `a b`, which a backend's product of f32 may round to TF32.
fn sums_of_products(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    let products = a.unsqueeze_dim::<5>(4) * b.unsqueeze_dim::<5>(2);
    products.sum_dim(3).squeeze_dim(3)
}

/// Which keys a query does not see, `[batch or 1, 1, seq, keys]`.
fn hidden(mask: &AttentionMask, device: &Device) -> Tensor<4, Bool> {
    let bounds = mask.visible_tensor(device).into_data();
    let bounds: Vec<i64> = bounds.iter::<i64>().collect();
    let (bounds, _) = bounds.as_chunks::<2>();
    let keys = 0..mask.ranges().keys() as i64;
    let hidden = bounds
        .iter()
        .flat_map(|[start, end]| keys.clone().map(move |key| !(*start..*end).contains(&key)));
    let shape = [
        bounds.len() / mask.ranges().seq(),
        1,
        mask.ranges().seq(),
        mask.ranges().keys(),
    ];
    let hidden = TensorData::new(hidden.collect::<Vec<bool>>(), shape);
    Tensor::from_data(hidden, device)
}

/// One test: the switch is the process's.
#[test]
fn bodies_equal_each_other() {
    for shape in [[1, 1, 1], [2, 3, 17], [3, 700, 33]] {
        assert_equals_plain(
            [random(shape), random(shape)],
            |[gate, up]| glu(gate, up, Activation::Silu),
            |[gate, up]| silu(gate) * up,
        );
        assert_equals_plain(
            [random(shape), random(shape)],
            |[gate, up]| glu(gate * 2.0, up, Activation::GeluTanh),
            |[gate, up]| plain_gelu(gate * 2.0) * up,
        );
        let [_, _, dim] = shape;
        assert_equals_plain(
            [random(shape), random([1, 1, dim])],
            |[x, weight]| rms_norm(x, weight.reshape([dim]), 1e-5),
            |[x, weight]| plain_rms_norm(x, weight.reshape([dim]), 1e-5),
        );
        assert_fused_equals_portable([random(shape), random([1, 5, dim])], |[x, weight]| {
            linear(x, weight.reshape([5, dim])) / dim as f32
        });
    }
    gelu_is_its_formula();
    portable(gelu_is_its_formula);
    views_are_as_good_as_whole_tensors();
    rotations_are_the_same();
    normed_rotations_are_the_same();
    losses_are_the_same();
    pieces_are_the_same();
    attention_is_the_same();
    dropouts_are_the_same();
    adapted_linears_are_the_same();
    updates_are_the_same();
    sums_of_squares_are_the_same();
    a_sum_of_squares_is_the_same_each_time();
    half_precision_weights_are_widened();
    a_losss_factor_is_not_rounded();
    a_backward_pass_begins_with_a_gradient();
    medium_precision_rounds_activations();
    packed::products_and_gradients_are_those_of_the_numbers();
    what_only_a_backward_pass_reads_is_kept_in_bf16();
    attention_in_half_precision_is_that_of_f32();
}

/// In value and both gradients, also where f32 cannot hold the cube of x.
fn gelu_is_its_formula() {
    const UP: f64 = 3.0;
    let near = (-400..=400).map(|i| i as f32 * 0.05);
    let gates: Vec<f32> = near.chain([-1e13, -1e4, 1e4, 1e13]).collect();
    let gate = Tensor::<1>::from_floats(&gates[..], &device()).require_grad();
    let up = Tensor::<1>::full([gates.len()], UP, &device()).require_grad();
    let out = glu(gate.clone(), up.clone(), Activation::GeluTanh);
    let grads = out.clone().sum().backward();
    let [gate_grad, up_grad] = [gate, up].map(|input| input.grad(&grads).expect("it is tracked"));
    let [out, gate_grad, up_grad] = [out.inner(), gate_grad, up_grad]
        .map(|tensor| tensor.into_data().iter().collect::<Vec<f64>>());
    for (i, x) in gates.into_iter().map(f64::from).enumerate() {
        let [(value, allowed), (slope, allowed_of_slope)] = gelu_in_f64(x);
        assert!((out[i] - UP * value).abs() <= UP * allowed, "{x}");
        assert!((up_grad[i] - value).abs() <= allowed, "{x}");
        let error = (gate_grad[i] - UP * slope).abs();
        assert!(error <= UP * allowed_of_slope, "{x}");
    }
}

/// The value and the slope, each with what it may be off by in f32. A rounding of w moves `sigmoid(w)` by `|w|`
/// times as much of itself.
fn gelu_in_f64(x: f64) -> [(f64, f64); 2] {
    let factor = (2.0 / std::f64::consts::PI).sqrt();
    let inner = factor * (x + 0.044715 * x.powi(3));
    let inner_slope = factor * (1.0 + 3.0 * 0.044715 * x * x);
    let (tanh, rounding) = (inner.tanh(), 1e-6 * (1.0 + inner.abs().min(100.0)));
    let half = 0.5 * (1.0 + tanh);
    let rest = 0.5 * x * (1.0 - tanh * tanh) * inner_slope;
    // The last part is what f64 loses where tanh comes near to -1.
    let allowed = |terms: f64| rounding * terms + 1e-14;
    [
        (x * half, allowed((x * half).abs())),
        (half + rest, allowed(half + rest.abs())),
    ]
}

/// What is not contiguous, or not all of its buffer.
fn views_are_as_good_as_whole_tensors() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        assert_fused_equals_portable([random([4, 6]), random([4, 6])], |[gate, up]| {
            glu(gate.narrow(0, 1, 2), up.narrow(0, 0, 2), activation)
        });
        assert_fused_equals_portable([random([4, 6]), random([6, 4])], |[gate, up]| {
            glu(gate.transpose(), up, activation)
        });
    }
    let target = Tensor::<1, Int>::from_ints([3, 0], &device());
    assert_fused_equals_portable([random([4, 6])], |[logits]| {
        cross_entropy_sum(logits.narrow(0, 1, 2), target.clone())
    });
    assert_fused_equals_portable([random([9, 4]), random([9, 3])], |[x, weight]| {
        linear(x.transpose(), weight.transpose())
    });
}

fn rotations_are_the_same() {
    for (rows, heads, head_dim, pairs) in [
        (1, 1, 2, 1),
        (1, 2, 6, 3),
        (2, 3, 16, 8),
        (1, 3, 16, 6),
        (2, 1, 7, 1),
    ] {
        let angles = random([rows, 5, 1, pairs]).inner();
        let [cos, sin] = [angles.clone().cos(), angles.sin()];
        assert_equals_plain(
            [random([2, 5, heads, head_dim])],
            |[x]| rotary(x, cos.clone(), sin.clone()),
            |[x]| plain_rotary(x, cos.clone(), sin.clone()),
        );
    }
    // Angles of another type are taken for what they are.
    if device().supports_dtype(DType::F16) {
        let angles = random([1, 5, 1, 2]).inner();
        let [cos, sin] = [angles.clone().cos(), angles.sin()].map(|t| t.cast(DType::F16));
        let x = random([2, 5, 3, 4]).inner();
        let [wide_cos, wide_sin] = [&cos, &sin].map(|t| t.clone().cast(DType::F32));
        let expected = rotary(x.clone(), wide_cos, wide_sin).into_data();
        assert_eq!(rotary(x, cos, sin).into_data(), expected);
    }
}

fn normed_rotations_are_the_same() {
    for (rows, heads, head_dim, pairs, width) in [
        (1, 1, 2, 1, 2),
        (1, 3, 20, 10, 20),
        (2, 2, 16, 5, 16),
        (2, 3, 16, 8, 48),
    ] {
        let angles = random([rows, 5, 1, pairs]).inner();
        let [cos, sin] = [angles.clone().cos(), angles.sin()];
        let weight = random([width]);
        let frozen = weight.clone().inner();
        assert_equals_plain(
            [random([2, 5, heads, head_dim])],
            |[x]| normed_rotary(x, frozen.clone(), 1e-2, cos.clone(), sin.clone()),
            |[x]| plain_normed_rotary(x, frozen.clone(), [cos.clone(), sin.clone()]),
        );
        let x = random([2, 5, heads, head_dim]).inner();
        assert_equals_plain(
            [weight],
            |[w]| normed_rotary(x.clone(), w, 1e-2, cos.clone(), sin.clone()),
            |[w]| plain_normed_rotary(x.clone(), w, [cos.clone(), sin.clone()]),
        );
    }
}

/// Of a leaf and of what is computed.
fn pieces_are_the_same() {
    for scale in [None, Some(0.5)] {
        let scaled = |x: Tensor<3>| scale.iter().fold(x, |x, scale| x * *scale);
        let backwards = |pieces: Vec<Tensor<3>>| Tensor::cat(pieces.into_iter().rev().collect(), 2);
        assert_equals_plain(
            [random([2, 6, 4])],
            |[x]| backwards(split(scaled(x), 2, &[1, 1, 2])),
            |[x]| {
                let column = |start, len| scaled(x.clone()).narrow(2, start, len);
                backwards(vec![column(0, 1), column(1, 1), column(2, 2)])
            },
        );
        // Some of them, of two dimensions, beside the whole.
        let of = |whole: Tensor<3>, columns: Tensor<3>, rows: Tensor<3>| {
            let [mean, sum] = [whole.mean(), rows.sum()].map(|x| x.reshape([1, 1, 1]));
            columns * mean + sum
        };
        assert_equals_plain(
            [random([3, 7, 9])],
            |[x]| {
                let x = scaled(x);
                let [columns, rows] = [
                    split(x.clone(), 2, &[5, 1, 3]),
                    split(x.clone(), 1, &[5, 2]),
                ];
                of(x, columns[2].clone(), rows[1].clone())
            },
            |[x]| {
                let x = scaled(x);
                of(x.clone(), x.clone().narrow(2, 6, 3), x.narrow(1, 5, 2))
            },
        );
    }
}

fn losses_are_the_same() {
    for (rows, classes) in [(1, 1), (3, 7), (5, 1000)] {
        let targets: Vec<i32> = (0..rows).map(|row| row * 131 % classes).collect();
        let targets = Tensor::<1, Int>::from_ints(&targets[..], &device());
        assert_fused_equals_portable([random([rows as usize, classes as usize])], |[logits]| {
            cross_entropy_sum(logits * 3.0, targets.clone()) / rows as f32
        });
    }
}

#[test]
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "the other backend that the tests have")]
fn a_mask_serves_several_devices() {
    let mask = AttentionMask::causal(0, 3);
    for device in [Device::flex(), Device::ndarray(), Device::flex()] {
        let visible = mask.visible_tensor(&device);
        assert_eq!(visible.device(), device);
        let bounds: Vec<i32> = visible.into_data().iter().collect();
        assert_eq!(bounds, [0, 1, 0, 2, 0, 3]);
    }
}

/// The scores of these tests: the usual ones, of another scale, capped slightly and so that many are flat.
fn kinds_of_scores(head_dim: usize) -> [Scores; 4] {
    let usual = Scores::of_head(head_dim);
    [
        usual,
        usual.with_scale(0.1),
        usual.with_cap(Some(50.0)),
        usual.with_scale(0.4).with_cap(Some(1.5)),
    ]
}

/// The last `width` keys up to each query's own position, in its own sample.
fn windows(width: usize, segments: &[Vec<usize>], seq: usize) -> AttentionMask {
    let samples = AttentionMask::within_segments(segments, seq);
    let rows = 0..segments.len();
    let seen = rows.flat_map(|row| samples.ranges().visible(row, 0..seq));
    let last = |seen: &Range<usize>| seen.start.max(seen.end.saturating_sub(width))..seen.end;
    AttentionMask::new(seq, seq, seen.map(last).collect())
}

fn attention_is_the_same() {
    let causal = |seq: usize| AttentionMask::causal(0, seq);
    let packed = AttentionMask::within_segments(&[vec![70, 1, 60], vec![3, 100]], 140);
    let cases = [
        (1, 1, 1, 1, causal(1)),
        (2, 2, 2, 5, causal(7)),
        (2, 4, 2, 16, causal(130)),
        (2, 6, 1, 3, packed),
        // More queries than a block of the portable body.
        (1, 2, 1, 4, AttentionMask::causal(0, 600)),
        // Queries after keys that a cache holds.
        (1, 4, 2, 8, AttentionMask::causal(9, 3)),
        // Windows: of oneself, shorter and longer than samples and blocks.
        (1, 2, 1, 4, windows(1, &[vec![9]], 9)),
        (1, 4, 2, 8, windows(50, &[vec![300]], 300)),
        (2, 4, 2, 8, windows(7, &[vec![70, 1, 60], vec![140]], 140)),
        (2, 2, 2, 4, windows(100, &[vec![90, 50], vec![3, 130]], 140)),
    ];
    a_query_that_sees_nothing_gives_zero();
    keys_outside_of_a_window_are_not_read();
    portable(keys_outside_of_a_window_are_not_read);
    for (batch, heads, kv_heads, head_dim, mask) in cases {
        let q = random([batch, mask.ranges().seq(), heads, head_dim]);
        let [k, v] = [(); 2].map(|()| random([batch, mask.ranges().keys(), kv_heads, head_dim]));
        for scores in kinds_of_scores(head_dim) {
            assert_attention_equals_plain([&q, &k, &v], &mask, scores);
        }
    }
}

/// Inputs of one shape at a time: queries, then keys and values.
fn assert_attention_equals_plain([q, k, v]: [&Tensor<4>; 3], mask: &AttentionMask, scores: Scores) {
    assert_equals_plain(
        [k.clone(), v.clone()],
        |[k, v]| attention_scored(q.clone(), k, v, mask, scores),
        |[k, v]| plain_attention([q.clone(), k, v], mask, scores),
    );
    assert_equals_plain(
        [q.clone()],
        |[q]| attention_scored(q, k.clone(), v.clone(), mask, scores),
        |[q]| plain_attention([q, k.clone(), v.clone()], mask, scores),
    );
}

/// A number times NaN would be NaN, also where the weight is zero. Queries 0 to 511 see the key 300 or nothing, those
/// after it the last 16 keys: what lies before, between and after is in no block of queries.
fn keys_outside_of_a_window_are_not_read() {
    const SEQ: usize = 600;
    let visible = (0..SEQ).map(|query| match query {
        _ if query % 7 == 3 => 0..0,
        0..512 => 300..301,
        _ => query - 15..query + 1,
    });
    let mask = AttentionMask::new(SEQ, SEQ, visible.collect());
    let is_seen = |key: usize| key == 300 || key >= 512 - 15;
    let unseen: Vec<f32> = (0..SEQ)
        .map(|key| if is_seen(key) { 0.0 } else { f32::NAN })
        .collect();
    let unseen = Tensor::<1>::from_floats(&unseen[..], &device()).reshape([1, SEQ, 1, 1]);
    let q = random([1, SEQ, 2, 4]);
    let [k, v] = [(); 2].map(|()| {
        (random([1, SEQ, 1, 4]) + unseen.clone())
            .detach()
            .require_grad()
    });
    let inputs = [q, k, v];
    for scores in kinds_of_scores(4) {
        let [q, k, v] = inputs.clone();
        let found = output_and_grads(&inputs, attention_scored(q, k, v, &mask, scores));
        for (index, found) in found.into_iter().enumerate() {
            assert!(
                !found.contains_nan().into_scalar::<bool>(),
                "{index}: {scores:?}"
            );
        }
    }
}

/// Some queries see nothing, alone and side by side, within blocks and at their end.
fn with_blind_queries() -> AttentionMask {
    let is_blind = |query| query % 7 == 3 || (60..90).contains(&query) || query > 120;
    let visible = (0..140).map(|query| match is_blind(query) {
        true => 5..5,
        false => 0..query + 1,
    });
    AttentionMask::new(140, 140, visible.collect())
}

/// Inputs in half precision against the same numbers in f32. Weights, outputs and gradients are rounded,
/// each by up to half of `step` of itself, and gradients are sums of rounded numbers. Where scores are
/// rounded too, a weight moves with the size of its score: these are kept small.
fn attention_in_half_precision_is_that_of_f32() {
    let packed = AttentionMask::within_segments(&[vec![70, 1, 60], vec![3, 100]], 140);
    let cases = [
        (1, 1, 1, 16, AttentionMask::causal(0, 1)),
        (1, 4, 2, 48, with_blind_queries()),
        (1, 2, 2, 112, AttentionMask::causal(0, 40)),
        (2, 4, 2, 16, AttentionMask::causal(0, 130)),
        (2, 6, 2, 32, packed),
        // Queries after keys that a cache holds.
        (1, 2, 2, 64, AttentionMask::causal(9, 70)),
        (1, 2, 1, 128, AttentionMask::causal(0, 65)),
        (1, 2, 1, 24, AttentionMask::causal(0, 20)),
        (2, 4, 2, 64, windows(40, &[vec![70, 1, 60], vec![140]], 140)),
    ];
    let types = [(DType::BF16, 2f32.powi(-8)), (DType::F16, 2f32.powi(-11))].into_iter();
    for (dtype, step) in types.filter(|(dtype, _)| device().supports_dtype(*dtype)) {
        for (batch, heads, kv_heads, head_dim, mask) in &cases {
            let q = random([*batch, mask.ranges().seq(), *heads, *head_dim]) * 0.25;
            let k = random([*batch, mask.ranges().keys(), *kv_heads, *head_dim]);
            let v = random([*batch, mask.ranges().keys(), *kv_heads, *head_dim]);
            let rounded = |x: Tensor<4>| x.inner().cast(dtype).cast(DType::F32);
            let inputs = [q, k, v].map(|input| Tensor::from_inner(rounded(input)).require_grad());
            for scores in kinds_of_scores(*head_dim) {
                let in_half = inputs.clone().map(|input| input.cast(dtype));
                assert_half_equals_f32(&inputs, in_half, mask, scores, step);
            }
        }
    }
}

fn assert_half_equals_f32(
    inputs: &[Tensor<4>; 3],
    [q, k, v]: [Tensor<4>; 3],
    mask: &AttentionMask,
    scores: Scores,
    step: f32,
) {
    let dtype = q.dtype();
    let out = attention_scored(q, k, v, mask, scores).cast(DType::F32);
    let found = output_and_grads(inputs, out);
    let expected = output_and_grads(inputs, plain_attention(inputs.clone(), mask, scores));
    for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        let size = expected.clone().abs().max().into_scalar::<f32>().max(1.0);
        let difference = (found - expected).abs().max().into_scalar::<f32>();
        assert!(
            difference < 4.0 * step * size,
            "{dtype:?}, {scores:?}, {index}: {difference} of {size}"
        );
    }
}

/// An output and the gradients of its inputs, which may have shapes of their own.
fn output_and_grads(inputs: &[Tensor<4>; 3], out: Tensor<4>) -> [Tensor<4>; 4] {
    let weights = Tensor::<1, Int>::arange(0..out.shape().num_elements() as i64, &out.device());
    let weights = (weights.float() * 0.37).sin().reshape(out.dims());
    let grads = (out.clone() * weights).sum().backward();
    let [q, k, v] = inputs
        .each_ref()
        .map(|input| input.grad(&grads).expect("every input has a gradient"));
    [out.inner(), q, k, v]
}

fn dropouts_are_the_same() {
    let mask = DropoutMask {
        seed: 5,
        probability: 0.3,
    };
    for shape in [[1, 1, 1], [2, 3, 17], [3, 700, 33]] {
        assert_fused_equals_portable([random(shape)], |[x]| dropout(x, mask));
    }
}

/// With all, and with only some, of the inputs tracked.
fn adapted_linears_are_the_same() {
    const SCALE: f64 = 1.7;
    let mask = DropoutMask {
        seed: 5,
        probability: 0.3,
    };
    for (shape, out_dim, rank) in [([1, 1, 1], 1, 1), ([2, 3, 17], 5, 2), ([3, 70, 33], 70, 8)] {
        let [_, _, dim] = shape;
        let x = random(shape);
        let weights = [[1, out_dim, dim], [1, rank, dim], [1, out_dim, rank]].map(random);
        let matrix = |weight: Tensor<3>| weight.squeeze_dim::<2>(0);
        for mask in [None, Some(mask)] {
            let fused = |[x, weight, a, b]: [Tensor<3>; 4]| {
                let out = lora_linear(x, matrix(weight), [a, b].map(matrix), SCALE, mask);
                out / (dim * rank) as f32
            };
            let plain = |[x, weight, a, b]: [Tensor<3>; 4]| {
                let dropped = mask.map_or(x.clone(), |mask| dropout(x.clone(), mask));
                let update = linear(linear(dropped, matrix(a)), matrix(b)) * SCALE;
                (linear(x, matrix(weight)) + update) / (dim * rank) as f32
            };
            let [weight, a, b] = weights.clone();
            let frozen = weight.clone().detach();
            assert_equals_plain([x.clone(), weight, a.clone(), b.clone()], fused, plain);
            assert_equals_plain(
                [x.clone(), a.clone(), b.clone()],
                |[x, a, b]| fused([x, frozen.clone(), a, b]),
                |[x, a, b]| plain([x, frozen.clone(), a, b]),
            );
            let constant = x.clone().detach();
            assert_equals_plain(
                [a, b],
                |[a, b]| fused([constant.clone(), frozen.clone(), a, b]),
                |[a, b]| plain([constant.clone(), frozen.clone(), a, b]),
            );
        }
    }
}

fn updates_are_the_same() {
    let step = AdamWStep {
        grad_scale: 0.7,
        beta1: 0.9,
        beta2: 0.999,
        eps: 0.5,
        decay: 0.99,
        step_size: 0.01,
        correction2: 0.3,
    };
    for len in [1, 7, 1000] {
        let [value, grad, exp_avg] = [(); 3].map(|()| random([len]).inner());
        let moments = [exp_avg, random([len]).inner().square()];
        let old = value.clone() * 1.0;
        let update = || adamw(value.clone(), grad.clone(), moments.clone(), step);
        let (fused, [exp_avg, exp_avg_sq]) = update();
        let (expected, expected_moments) = portable(update);
        assert_close(fused, expected, "value");
        for (moment, expected) in [exp_avg, exp_avg_sq].into_iter().zip(expected_moments) {
            assert_close(moment, expected, "moment");
        }
        assert_close(value, old, "what others read stays as it was");
    }
}

fn sums_of_squares_are_the_same() {
    let tensors: Vec<Tensor<1>> = [1, 7, 1000, 70_000].map(|len| random([len]).inner()).into();
    let squares = tensors.iter().map(|tensor| tensor.clone().square().sum());
    let expected = squares.reduce(|sum, square| sum + square).expect("four");
    let sum = || {
        let zero = SumOfSquares::zero(&device().inner());
        tensors
            .iter()
            .cloned()
            .fold(zero, SumOfSquares::add)
            .parts()
            .sum()
    };
    assert_close(sum(), expected.clone(), "sum of squares");
    assert_close(portable(sum), expected, "sum of squares");
}

/// Members of a training clip by it, each on its own.
fn a_sum_of_squares_is_the_same_each_time() {
    let values = Tensor::<1>::random([5 << 20], Distribution::Default, &Device::flex());
    let parts = || {
        let sum = SumOfSquares::zero(&Device::flex()).add(values.clone());
        sum.parts().into_data()
    };
    let first = parts();
    assert!((0..20).all(|_| parts() == first));
}

fn a_query_that_sees_nothing_gives_zero() {
    let x = random([1, 2, 1, 4]);
    for visible in [vec![0..0, 0..0], vec![0..0, 0..2]] {
        let mask = AttentionMask::new(2, 2, visible);
        let attend = || attention(x.clone(), x.clone(), x.clone(), &mask);
        for out in [attend(), portable(attend)] {
            let first = out.clone().narrow(1, 0, 1).abs().max().into_scalar::<f32>();
            assert_eq!(first, 0.0);
            let grads = out.sum().backward();
            let grad = x.grad(&grads).expect("x is tracked");
            assert!(grad.abs().max().into_scalar::<f32>().is_finite());
        }
    }
}

#[test]
#[should_panic = "the input's width is not the weight's"]
fn a_weight_of_another_width_panics() {
    linear(random([4, 6]), random([3, 8]));
}

#[test]
#[should_panic = "must be above zero"]
fn a_cap_of_zero_panics() {
    let x = random([1, 3, 1, 2]);
    let scores = Scores::of_head(2).with_cap(Some(0.0));
    attention_scored(
        x.clone(),
        x.clone(),
        x,
        &AttentionMask::causal(0, 3),
        scores,
    );
}

#[test]
#[should_panic = "the mask does not fit the heads"]
fn a_mask_of_another_length_panics() {
    let x = random([1, 4, 1, 2]);
    attention(x.clone(), x.clone(), x, &AttentionMask::causal(0, 3));
}

fn half_precision_weights_are_widened() {
    let types = [DType::BF16, DType::F16].into_iter();
    for dtype in types.filter(|dtype| device().supports_dtype(*dtype)) {
        let weight = random([70, 33]).inner().cast(dtype);
        assert_fused_equals_portable([random([5, 33])], |[x]| {
            linear(x, Tensor::from_inner(weight.clone())) / 33.0
        });
        // Its gradient is of its type and, but for rounding to that, the one of f32.
        let x = random([5, 33]);
        let [half, wide] = [dtype, DType::F32].map(|dtype| {
            let weight = Tensor::from_inner(weight.clone().cast(dtype)).require_grad();
            let grads = linear(x.clone(), weight.clone()).sum().backward();
            weight.grad(&grads).expect("it is trained")
        });
        assert_eq!(half.dtype(), dtype);
        let difference = (half.cast(DType::F32) - wide.clone()).abs();
        let allowed = wide.abs() * 2f32.powi(-8) + 1e-4;
        assert!((difference - allowed).max().into_scalar::<f32>() <= 0.0);
    }
}

fn a_backward_pass_begins_with_a_gradient() {
    let (x, grad) = (random([3, 5]), random([3, 5]).inner());
    let output = || x.clone().exp();
    let found = x.grad(&backward_from(output(), grad.clone()));
    let plain = (output() * Tensor::from_inner(grad)).sum().backward();
    assert_close(
        found.expect("x is tracked"),
        x.grad(&plain).expect("x is tracked"),
        "gradient",
    );
}

/// Of eight equal logits the target's gradient is -7/8, and a third of that in bf16 -149/512. With a
/// rounded third it would be -150/512.
fn a_losss_factor_is_not_rounded() {
    if !device().supports_dtype(DType::BF16) {
        return;
    }
    let logits = Tensor::<2>::zeros([1, 8], (&device(), DType::BF16)).require_grad();
    let target = Tensor::<1, Int>::from_ints([2], &device());
    let grads = (cross_entropy_sum(logits.clone(), target) / 3.0).backward();
    let grad = logits.grad(&grads).expect("it is tracked");
    assert_eq!(grad.dtype(), DType::BF16);
    let grad: Vec<f32> = grad.cast(DType::F32).into_data().iter().collect();
    assert_eq!(grad[2], -149.0 / 512.0);
}

/// Rounding to the eight digits of bf16 moves an activation by at most 2⁻⁹ of itself, and so a
/// product by at most 2⁻⁹ of `Σ |x| |w|`.
fn medium_precision_rounds_activations() {
    if !device().supports_dtype(DType::BF16) {
        return;
    }
    let (x, weight) = (random([5, 33]).inner(), random([70, 33]).inner());
    let products = |precision, x: Tensor<2>, weight: Tensor<2>| {
        set_matmul_precision(precision);
        let product = linear(x, weight.cast(DType::BF16));
        set_matmul_precision(MatmulPrecision::Highest);
        product
    };
    let highest = products(MatmulPrecision::Highest, x.clone(), weight.clone());
    let medium = products(MatmulPrecision::Medium, x.clone(), weight.clone());
    let sizes = products(MatmulPrecision::Highest, x.abs(), weight.abs());
    let moved = (medium - highest).abs();
    let above = (moved.clone() - sizes * 2f32.powi(-9)).max();
    assert!(above.into_scalar::<f32>() < 1e-5, "{moved}");
    let is_rounded = moved.max().into_scalar::<f32>() > 1e-5;
    let is_fused = flex::fuses(&device());
    let rounds = is_fused && flex::multiplies_bf16();
    assert!(is_rounded == rounds || may_round_to_tf32());
}

/// The outputs are those of f32, the gradients those at the inputs' nearest bf16.
fn what_only_a_backward_pass_reads_is_kept_in_bf16() {
    let mask = AttentionMask::causal(0, 5);
    assert_kept_as_told([random([3, 35]), random([3, 35])], |[gate, up]| {
        glu(gate, up, Activation::Silu)
    });
    assert_kept_as_told([random([3, 35])], |[x]| {
        rms_norm(x, Tensor::ones([35], &device()), 1e-5)
    });
    let heads = || random([1, 5, 2, 8]);
    assert_kept_as_told([heads(), heads(), heads()], |[q, k, v]| {
        attention(q, k, v, &mask)
    });
}

fn assert_kept_as_told<const D: usize, const N: usize>(
    inputs: [Tensor<D>; N],
    op: impl Fn([Tensor<D>; N]) -> Tensor<D>,
) {
    let (output, _) = run(&inputs, &op);
    set_matmul_precision(MatmulPrecision::Medium);
    let kept = kept_dtype(&device(), DType::F32);
    let (medium_output, medium_grads) = run(&inputs, &op);
    set_matmul_precision(MatmulPrecision::Highest);
    assert_eq!(kept == DType::BF16, flex::fuses(&device()));
    assert_eq!(medium_output.into_data(), output.into_data());
    let rounded = inputs.map(|input| input.cast(kept).cast(DType::F32));
    let (_, grads) = run(&rounded, &op);
    for (medium, grad) in medium_grads.into_iter().zip(grads) {
        assert_eq!(medium.into_data(), grad.into_data());
    }
}

/// Whether products of f32 are a GPU's.
fn may_round_to_tf32() -> bool {
    #[cfg(feature = "cube")]
    if let DispatchDevice::Cube(_) = Device::default().as_dispatch() {
        return true;
    }
    false
}
