//! Combinations of several adapters of one layer into one, by the names that PEFT's
//! `add_weighted_adapter` gives them.
//!
//! Each adapter i has the update `s_i·B_i·A_i` and the weight `w_i`:
//!
//! | name | result |
//! |---|---|
//! | `cat` | `Σ w_i s_i B_i A_i`, exactly; the ranks add up |
//! | `svd` | the closest matrix of a chosen rank to that sum |
//! | `linear` | the sum of the `A_i` and that of the `B_i`, so with products of different adapters |
//! | `magnitude_prune` | like `linear`, of the largest elements |
//! | `ties` | like `linear`, of the largest elements, where they agree in sign |
//! | `dare_linear`, `dare_ties` | the same of random elements |
//! | `magnitude_prune_svd`, `ties_svd`, ... | of the updates in place of their factors |

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Tensor};
use rand_chacha::ChaCha8Rng;

use super::linalg::{Svd, from_host, svd, svd_of_product, to_host};
use super::random::{bernoulli, rng};
use crate::error::nearest;
use crate::{Error, Result};

/// The adapter of one layer as its update `s·B·A` of the weight.
///
/// # Shapes
/// - `a`: `[r, in]`
/// - `b`: `[out, r]`
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Factors {
    /// The factor on the layer's input.
    pub a: Tensor<2>,
    /// The factor on the layer's output.
    pub b: Tensor<2>,
    /// What the product is multiplied by: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub scale: f64,
}

impl Factors {
    /// The update `scale·B·A`.
    ///
    /// # Panics
    /// If `a` and `b` have different ranks.
    pub fn new(a: Tensor<2>, b: Tensor<2>, scale: f64) -> Self {
        let ([rank, _], [_, rank_b]) = (a.dims(), b.dims());
        assert_eq!(rank, rank_b, "A has {rank} rows, B has {rank_b} columns");
        Self { a, b, scale }
    }

    /// The number of rows of `A` and of columns of `B`.
    pub fn rank(&self) -> usize {
        let [rank, _] = self.a.dims();
        rank
    }

    /// The update of the weight, `[out, in]`.
    pub fn update(&self) -> Tensor<2> {
        self.b.clone().matmul(self.a.clone()) * self.scale
    }

    fn shape(&self) -> [usize; 2] {
        let ([_, in_dim], [out_dim, _]) = (self.a.dims(), self.b.dims());
        [out_dim, in_dim]
    }

    fn in_f32(&self) -> Self {
        Self {
            a: self.a.clone().detach().cast(DType::F32),
            b: self.b.clone().detach().cast(DType::F32),
            scale: self.scale,
        }
    }
}

/// How adapters are combined.
///
/// ```
/// use burn_peft::lora::Combination;
///
/// let kind: Combination = "ties_svd".parse()?;
/// assert_eq!(kind, Combination::TiesSvd);
/// # Ok::<(), burn_peft::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Combination {
    /// `A = Σ ±sqrt(|w_i s_i|) A_i` and `B = Σ sqrt(|w_i s_i|) B_i`. Their product has, beside the sum of
    /// the updates, all products `B_i A_j` of different adapters: a rough approximation that keeps the
    /// rank. The sign of a negative weight is on `A`.
    Linear,
    /// The factors one beside the other: exactly the weighted sum of the updates, of the sum of the ranks.
    Cat,
    /// The closest matrix of the rank asked for to the weighted sum of the updates.
    Svd,
    /// TIES: of each factor the largest elements, of these the ones with the sign that the adapters have
    /// in sum, and of the ones the mean. Yadav et al., <https://arxiv.org/abs/2306.01708>.
    Ties,
    /// TIES on the updates, then as `svd`.
    TiesSvd,
    /// DARE: random elements of each factor, divided by the share of those kept, then as `linear`. Yu et
    /// al., <https://arxiv.org/abs/2311.03099>.
    DareLinear,
    /// DARE's random elements in place of TIES's largest.
    DareTies,
    /// DARE on the updates, then as `svd`.
    DareLinearSvd,
    /// TIES with DARE's random elements on the updates, then as `svd`.
    DareTiesSvd,
    /// The largest elements of each factor, then as `linear`.
    MagnitudePrune,
    /// The largest elements of each update, then as `svd`.
    MagnitudePruneSvd,
}

impl Combination {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Linear,
        Self::Cat,
        Self::Svd,
        Self::Ties,
        Self::TiesSvd,
        Self::DareLinear,
        Self::DareTies,
        Self::DareLinearSvd,
        Self::DareTiesSvd,
        Self::MagnitudePrune,
        Self::MagnitudePruneSvd,
    ];

    /// PEFT's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cat => "cat",
            Self::Svd => "svd",
            Self::Ties => "ties",
            Self::TiesSvd => "ties_svd",
            Self::DareLinear => "dare_linear",
            Self::DareTies => "dare_ties",
            Self::DareLinearSvd => "dare_linear_svd",
            Self::DareTiesSvd => "dare_ties_svd",
            Self::MagnitudePrune => "magnitude_prune",
            Self::MagnitudePruneSvd => "magnitude_prune_svd",
        }
    }

    /// What is left out of each matrix before they are added, if anything.
    fn pruning(self) -> Option<Pruning> {
        match self {
            Self::Linear | Self::Cat | Self::Svd => None,
            Self::Ties | Self::TiesSvd | Self::MagnitudePrune | Self::MagnitudePruneSvd => {
                Some(Pruning::Magnitude)
            }
            Self::DareLinear | Self::DareTies | Self::DareLinearSvd | Self::DareTiesSvd => {
                Some(Pruning::Random)
            }
        }
    }

    fn elects_signs(self) -> bool {
        matches!(
            self,
            Self::Ties | Self::TiesSvd | Self::DareTies | Self::DareTiesSvd
        )
    }

    /// The kind that does the same to the updates, where this one works on the factors.
    fn on_updates(self) -> Option<Self> {
        match self {
            Self::Linear => Some(Self::Svd),
            Self::Ties => Some(Self::TiesSvd),
            Self::DareLinear => Some(Self::DareLinearSvd),
            Self::DareTies => Some(Self::DareTiesSvd),
            Self::MagnitudePrune => Some(Self::MagnitudePruneSvd),
            _ => None,
        }
    }
}

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Combination {
    type Err = Error;

    /// Parses a combination's name.
    ///
    /// # Errors
    /// [`Error::Config`] for any other name, with the nearest valid one.
    fn from_str(name: &str) -> Result<Self> {
        parse(name, "combination", Self::ALL, Self::name)
    }
}

/// Which sign an element of the combination has in TIES.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MajoritySign {
    /// That of the sum of the adapters' elements.
    #[default]
    Total,
    /// That of more adapters.
    Frequency,
}

impl MajoritySign {
    /// PEFT's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Frequency => "frequency",
        }
    }
}

impl fmt::Display for MajoritySign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MajoritySign {
    type Err = Error;

    /// Parses `total` or `frequency`.
    ///
    /// # Errors
    /// [`Error::Config`] for any other name.
    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::Total, Self::Frequency];
        parse(name, "majority_sign", all, Self::name)
    }
}

/// What some combinations need beside the weights.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct CombineOptions {
    /// The share of the elements that pruning keeps, in `(0, 1]`; the kinds that prune need it.
    pub density: Option<f64>,
    /// Which sign wins in TIES.
    pub majority_sign: MajoritySign,
    /// The rank of the kinds that end in `svd`; without it the largest of the adapters' ranks.
    pub svd_rank: Option<usize>,
    /// Of DARE's random elements. Each layer should have its own.
    pub seed: u64,
}

impl CombineOptions {
    /// With the share of the elements that pruning keeps.
    pub fn with_density(mut self, density: f64) -> Self {
        self.density = Some(density);
        self
    }

    /// With another rule of which sign wins in TIES.
    pub fn with_majority_sign(mut self, majority_sign: MajoritySign) -> Self {
        self.majority_sign = majority_sign;
        self
    }

    /// With the rank of the kinds that end in `svd`.
    pub fn with_svd_rank(mut self, rank: usize) -> Self {
        self.svd_rank = Some(rank);
        self
    }

    /// With the seed of DARE's random elements.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// The combination of `adapters` of one layer with `weights`, which may be negative: f32 factors of the
/// scale 1, without a graph.
///
/// Each adapter counts with its own scale, so adapters with rsLoRA and of different ranks are combined
/// rightly. TIES elects signs before the weights are applied, as in PEFT.
///
/// # Shapes
/// - `adapters`: all of one `[out, in]`
/// - output: `a [r, in]`, `b [out, r]`; r is the adapters' rank, with `cat` the sum of their ranks, and
///   with kinds that end in `svd` the one asked for
///
/// # Errors
/// [`Error::InvalidArgument`] if there is no adapter, or not one weight for each; if the adapters are for
/// layers of different shapes, or differ in rank where the kind adds their factors; if the density or the
/// rank cannot be used; or if an adapter that is decomposed holds NaN or infinite numbers.
pub fn combine(
    kind: Combination,
    adapters: &[Factors],
    weights: &[f64],
    options: &CombineOptions,
) -> Result<Factors> {
    check_adapters(adapters, weights)?;
    let rule = Rule::new(kind, options)?;
    let adapters: Vec<Factors> = adapters.iter().map(Factors::in_f32).collect();
    match kind {
        Combination::Cat => Ok(cat(&adapters, weights)),
        Combination::Svd => {
            let rank = svd_rank(&adapters, options)?;
            let sum = cat(&adapters, weights);
            svd_of_product(sum.b, sum.a, rank).map(from_svd)
        }
        _ if kind.on_updates().is_some() => combine_factors(kind, &adapters, weights, rule),
        _ => {
            let rank = svd_rank(&adapters, options)?;
            let updates = adapters.iter().map(Factors::update).collect();
            let update = rule.merge(updates, weights, &mut rng(options.seed));
            Ok(from_svd(svd(update)?.truncate(rank)))
        }
    }
}

fn cat(adapters: &[Factors], weights: &[f64]) -> Factors {
    let scaled = |(adapter, weight): (&Factors, &f64)| adapter.a.clone() * (weight * adapter.scale);
    let a = adapters.iter().zip(weights).map(scaled).collect();
    let b = adapters.iter().map(|adapter| adapter.b.clone()).collect();
    Factors::new(Tensor::cat(a, 0), Tensor::cat(b, 1), 1.0)
}

fn combine_factors(
    kind: Combination,
    adapters: &[Factors],
    weights: &[f64],
    rule: Rule,
) -> Result<Factors> {
    check_ranks(kind, adapters)?;
    let root = |(adapter, weight): (&Factors, &f64)| {
        let weight = weight * adapter.scale;
        (weight.abs().sqrt(), weight.signum())
    };
    let roots: Vec<(f64, f64)> = adapters.iter().zip(weights).map(root).collect();
    let weights_a: Vec<f64> = roots.iter().map(|(root, sign)| root * sign).collect();
    let weights_b: Vec<f64> = roots.iter().map(|(root, _)| *root).collect();
    let rng = &mut rng(rule.seed);
    let a = adapters.iter().map(|adapter| adapter.a.clone()).collect();
    let a = rule.merge(a, &weights_a, rng);
    let b = adapters.iter().map(|adapter| adapter.b.clone()).collect();
    let b = rule.merge(b, &weights_b, rng);
    Ok(Factors::new(a, b, 1.0))
}

/// `B = U·diag(S)` and `A = V^T`.
fn from_svd(svd: Svd) -> Factors {
    let s = svd.s.unsqueeze_dim(0);
    Factors::new(svd.vt, svd.u * s, 1.0)
}

#[derive(Debug, Clone, Copy)]
enum Pruning {
    Magnitude,
    Random,
}

/// How the matrices of several adapters become one.
struct Rule {
    /// With the share of the elements that are kept.
    pruning: Option<(Pruning, f64)>,
    majority_sign: Option<MajoritySign>,
    seed: u64,
}

impl Rule {
    fn new(kind: Combination, options: &CombineOptions) -> Result<Self> {
        let pruning = kind.pruning().map(|pruning| {
            let density = checked_density(kind, options.density)?;
            Ok((pruning, density))
        });
        Ok(Self {
            pruning: pruning.transpose()?,
            majority_sign: kind.elects_signs().then_some(options.majority_sign),
            seed: options.seed,
        })
    }

    fn merge(&self, matrices: Vec<Tensor<2>>, weights: &[f64], rng: &mut ChaCha8Rng) -> Tensor<2> {
        let prune = |matrix| match self.pruning {
            Some((Pruning::Magnitude, density)) => keep_largest(matrix, density),
            Some((Pruning::Random, density)) => keep_random(matrix, density, rng),
            None => matrix,
        };
        let matrices: Vec<Tensor<2>> = matrices.into_iter().map(prune).collect();
        match self.majority_sign {
            None => sum(weighted(matrices, weights)),
            Some(method) => disjoint_mean(matrices, weights, method),
        }
    }
}

fn weighted(matrices: Vec<Tensor<2>>, weights: &[f64]) -> impl Iterator<Item = Tensor<2>> {
    matrices.into_iter().zip(weights).map(|(m, w)| m * *w)
}

fn sum(matrices: impl Iterator<Item = Tensor<2>>) -> Tensor<2> {
    matrices
        .reduce(|sum, matrix| sum + matrix)
        .expect("there is an adapter")
}

/// The mean of the weighted elements among those with the sign elected, zero where there is none.
fn disjoint_mean(matrices: Vec<Tensor<2>>, weights: &[f64], method: MajoritySign) -> Tensor<2> {
    let total = match method {
        MajoritySign::Total => sum(matrices.iter().cloned()),
        MajoritySign::Frequency => sum(matrices.iter().map(|m| m.clone().sign())),
    };
    let positive = total.greater_equal_elem(0.0);
    // 1 where the sign is the elected one, else 0: also where the element itself is 0.
    let agrees = |matrix: &Tensor<2>| {
        let (plus, minus) = (
            matrix.clone().greater_elem(0.0),
            matrix.clone().lower_elem(0.0),
        );
        let agrees = minus.mask_where(positive.clone(), plus);
        agrees.float().cast(DType::F32)
    };
    let agreeing: Vec<Tensor<2>> = matrices.iter().map(agrees).collect();
    let count = sum(agreeing.iter().cloned());
    let chosen = weighted(matrices, weights).zip(agreeing);
    sum(chosen.map(|(matrix, agrees)| matrix * agrees)) / count.clamp_min(1.0)
}

/// The `density·n` largest of the n elements, by their absolute values; the others become zero.
fn keep_largest(matrix: Tensor<2>, density: f64) -> Tensor<2> {
    let values = to_host(matrix.clone());
    let count = (density * values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    // Of equal elements the first, so that the choice is the same everywhere.
    let larger_first = |i: &usize, j: &usize| {
        let (x, y) = (values[*i].abs(), values[*j].abs());
        y.total_cmp(&x).then(i.cmp(j))
    };
    if count < values.len() {
        order.select_nth_unstable_by(count, larger_first);
    }
    let mut mask = vec![0.0; values.len()];
    order[..count].iter().for_each(|i| mask[*i] = 1.0);
    let mask = from_host(mask, matrix.dims(), &matrix.device());
    matrix * mask
}

/// Each element with the probability `density`, divided by it; the others become zero.
fn keep_random(matrix: Tensor<2>, density: f64, rng: &mut ChaCha8Rng) -> Tensor<2> {
    let [rows, cols] = matrix.dims();
    let mask = bernoulli(rng, rows * cols, density);
    let mask = from_host(mask, [rows, cols], &matrix.device());
    matrix * mask / density
}

fn check_adapters(adapters: &[Factors], weights: &[f64]) -> Result<()> {
    let Some(first) = adapters.first() else {
        return invalid("adapters", "name at least one adapter to combine".into());
    };
    if weights.len() != adapters.len() || weights.iter().any(|weight| !weight.is_finite()) {
        let message = format!(
            "{} adapters need as many finite weights, not {weights:?}",
            adapters.len()
        );
        return invalid("weights", message);
    }
    let shape = first.shape();
    match adapters.iter().find(|adapter| adapter.shape() != shape) {
        None => Ok(()),
        Some(other) => invalid(
            "adapters",
            format!(
                "they are for layers of different shapes, [out, in] = {shape:?} and {:?}",
                other.shape()
            ),
        ),
    }
}

fn check_ranks(kind: Combination, adapters: &[Factors]) -> Result<()> {
    let ranks: Vec<usize> = adapters.iter().map(Factors::rank).collect();
    let instead = kind.on_updates().unwrap_or(Combination::Svd);
    match ranks.iter().all(|rank| *rank == ranks[0]) {
        true => Ok(()),
        false => invalid(
            "combination",
            format!(
                "`{kind}` adds the adapters' factors, so they must have one rank, not {ranks:?}; take \
                 `cat`, whose rank is their sum, or `{instead}`"
            ),
        ),
    }
}

fn checked_density(kind: Combination, density: Option<f64>) -> Result<f64> {
    match density {
        Some(density) if density > 0.0 && density <= 1.0 => Ok(density),
        Some(density) => invalid(
            "density",
            format!("{density} is not a share of elements to keep: above 0, at most 1"),
        ),
        None => invalid(
            "density",
            format!("`{kind}` needs the share of elements to keep, 0.5 say"),
        ),
    }
}

fn svd_rank(adapters: &[Factors], options: &CombineOptions) -> Result<usize> {
    let [out_dim, in_dim] = adapters[0].shape();
    let limit = out_dim.min(in_dim);
    let largest = adapters.iter().map(Factors::rank).max().unwrap_or(limit);
    match options.svd_rank {
        None => Ok(largest.min(limit)),
        Some(rank) if (1..=limit).contains(&rank) => Ok(rank),
        Some(rank) => invalid(
            "svd_rank",
            format!("{rank} is not a rank of a layer [{out_dim}, {in_dim}]: 1 to {limit}"),
        ),
    }
}

fn invalid<T>(name: &'static str, message: String) -> Result<T> {
    Err(Error::InvalidArgument { name, message })
}

fn parse<T: Copy, const N: usize>(
    name: &str,
    what: &str,
    all: [T; N],
    name_of: fn(T) -> &'static str,
) -> Result<T> {
    let names = all.map(name_of);
    let found = all.into_iter().find(|value| name_of(*value) == name);
    found.ok_or_else(|| Error::Config {
        origin: what.into(),
        key: what.into(),
        line: None,
        message: format!("unknown {what} `{name}`; choose from {}", names.join(", ")),
        nearest: nearest(name, names, 1),
    })
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::Combination::*;
    use super::MajoritySign::*;
    use super::*;
    use burn::tensor::Device;

    fn factors(a: &[f32], b: &[f32], scale: f64) -> Factors {
        let device = Device::flex();
        let a = from_host(a.to_vec(), [a.len() / 5, 5], &device);
        let b = from_host(b.to_vec(), [4, b.len() / 4], &device);
        Factors::new(a, b, scale)
    }

    /// What PEFT's literals are made of: rank 2 and alpha 3, 1, 2.
    fn adapters() -> [Factors; 3] {
        [
            factors(&X_A, &X_B, 1.5),
            factors(&Y_A, &Y_B, 0.5),
            factors(&Z_A, &Z_B, 1.0),
        ]
    }

    const WEIGHTS: [f64; 3] = [0.7, -0.4, 1.2];

    fn with_density(density: f64) -> CombineOptions {
        CombineOptions::default().with_density(density)
    }

    #[track_caller]
    fn assert_close(found: Tensor<2>, expected: &[f32], tolerance: f32) {
        let found = to_host(found);
        assert_eq!(found.len(), expected.len());
        for (i, (x, y)) in found.iter().zip(expected).enumerate() {
            assert!((x - y).abs() <= tolerance, "element {i}: {x} {y}");
        }
    }

    /// By `add_weighted_adapter` of PEFT 0.21.2. DARE draws nothing at the density 1.
    #[test]
    fn the_updates_are_those_of_peft() {
        let cases = [
            (Linear, 1.0, Total, LINEAR),
            (Cat, 1.0, Total, CAT),
            (Svd, 1.0, Total, SVD),
            (Ties, 0.5, Total, TIES),
            (Ties, 0.8, Frequency, TIES_FREQUENCY),
            (TiesSvd, 0.5, Total, TIES_SVD),
            (TiesSvd, 0.8, Frequency, TIES_SVD_FREQUENCY),
            (MagnitudePrune, 0.3, Total, MAGNITUDE_PRUNE),
            (MagnitudePruneSvd, 0.3, Total, MAGNITUDE_PRUNE_SVD),
            (DareLinear, 1.0, Total, LINEAR),
            (DareTies, 1.0, Total, DARE_TIES),
            (DareLinearSvd, 1.0, Total, SVD),
            (DareTiesSvd, 1.0, Frequency, DARE_TIES_SVD_FREQUENCY),
        ];
        for (kind, density, majority_sign, expected) in cases {
            let options = with_density(density).with_majority_sign(majority_sign);
            let combined = combine(kind, &adapters(), &WEIGHTS, &options).unwrap();
            let rank = if kind == Cat { 6 } else { 2 };
            assert_eq!((combined.rank(), combined.scale), (rank, 1.0), "{kind}");
            assert_close(combined.update(), &expected, 5e-6);
        }
    }

    #[test]
    fn the_factors_and_the_rank_asked_for_are_those_of_peft() {
        let combined = combine(Ties, &adapters(), &WEIGHTS, &with_density(0.5)).unwrap();
        assert_close(combined.a, &TIES_A, 1e-6);
        assert_close(combined.b, &TIES_B, 1e-6);
        let options = CombineOptions::default().with_svd_rank(3);
        let combined = combine(Svd, &adapters(), &WEIGHTS, &options).unwrap();
        assert_eq!(combined.rank(), 3);
        assert_close(combined.update(), &SVD_OF_RANK_3, 5e-6);
    }

    #[rustfmt::skip]
    const X_A: [f32; 10] = [
        0.0, 0.644, 0.335, 0.017, -0.979, -0.976, 0.067, 0.255, 0.73, 0.151,
    ];
    #[rustfmt::skip]
    const X_B: [f32; 8] = [
        0.783, 1.0, -0.53, 0.794, -0.45, -0.435, 0.823, -0.599,
    ];
    #[rustfmt::skip]
    const Y_A: [f32; 10] = [
        0.746, -0.832, -0.272, 0.206, -0.651, -0.116, -0.443, 0.65, 0.456, -0.917,
    ];
    #[rustfmt::skip]
    const Y_B: [f32; 8] = [
        -0.058, -0.083, -0.923, -0.638, -0.999, 0.706, -0.978, -0.192,
    ];
    #[rustfmt::skip]
    const Z_A: [f32; 10] = [
        -0.994, -0.458, -0.778, -0.419, 0.35, 0.899, 0.752, 0.915, -0.981, 0.826,
    ];
    #[rustfmt::skip]
    const Z_B: [f32; 8] = [
        -0.706, -0.981, -0.976, 0.45, -0.516, 0.902, 0.984, 0.254,
    ];
    #[rustfmt::skip]
    const LINEAR: [f32; 20] = [
        -0.007471, -0.09334, -0.085867, 0.044577, -0.128932, 2.917937, 0.039893, 1.777977, 0.538949,
        2.166363, 2.126905, 0.154619, 1.405467, 0.330964, 1.745211, -2.126207, 0.327281, -0.984774,
        -0.568362, -1.106986,
    ];
    #[rustfmt::skip]
    const CAT: [f32; 20] = [
        -1.234258, 0.085573, 0.132789, 2.300246, -1.937996, 0.958852, 0.429848, 1.464188, 0.656346,
        0.469638, 2.19978, 0.658984, 1.051249, -1.167078, 1.070361, -0.144382, 0.023026, -0.538906,
        -1.180403, -0.438478,
    ];
    #[rustfmt::skip]
    const SVD: [f32; 20] = [
        -1.406273, -0.086234, 0.141776, 2.441171, -1.549467, 1.099983, 0.466683, 1.326766, 0.706745,
        0.406328, 1.986269, 0.486611, 1.113462, -1.057337, 1.452322, -0.251521, -0.216533, -0.698855,
        -0.881285, 0.128714,
    ];
    #[rustfmt::skip]
    const TIES: [f32; 20] = [
        -1.898442, 0.298535, 0.640029, -1.10117, 0.134574, -0.006873, -0.2757, 0.035146, -0.874329,
        0.597455, -0.165507, -0.166234, 0.078602, -0.700565, 0.426404, -1.045994, 0.35743, 0.329755,
        0.0, -0.342,
    ];
    #[rustfmt::skip]
    const TIES_FREQUENCY: [f32; 20] = [
        0.741449, 0.40523, 0.039223, 0.278767, 0.257218, 1.026442, 0.406795, 0.510449, 0.221341,
        0.671352, 0.810822, 0.32369, 0.396272, 0.177352, 0.525521, -0.664997, -0.218362, -0.464376,
        -0.095171, -0.527334,
    ];
    #[rustfmt::skip]
    const TIES_SVD: [f32; 20] = [
        -1.191119, 0.35612, 0.723735, 1.119419, -0.605485, -0.160327, 0.59866, 1.22896, 0.584219,
        -0.248928, 1.439367, 0.368845, 0.767467, -0.723588, 0.488713, -0.47634, -0.035685, -0.076504,
        0.307462, -0.187994,
    ];
    #[rustfmt::skip]
    const TIES_SVD_FREQUENCY: [f32; 20] = [
        -1.132493, 0.128996, 0.572701, 1.168376, -0.768955, -0.218472, 0.511095, 1.377237, 0.594675,
        0.026465, 0.872523, 0.336461, 0.694303, -0.56914, 0.749135, 0.071039, -0.005122, -0.028187,
        -0.071034, 0.049303,
    ];
    #[rustfmt::skip]
    const MAGNITUDE_PRUNE: [f32; 20] = [
        0.049942, 0.0, -0.050053, 0.01631, -0.020479, 0.0, 0.0, 0.0, 0.0, 0.0, 0.635522, -0.166234,
        0.0, 0.0, 0.448186, -2.110792, 0.55212, 0.0, 0.0, -1.488581,
    ];
    #[rustfmt::skip]
    const MAGNITUDE_PRUNE_SVD: [f32; 20] = [
        -0.975297, -0.033534, -0.035529, 2.158639, -2.074344, 1.158323, -0.076558, 1.114995, -0.08417,
        0.197165, 1.528501, -0.107544, 1.531424, 0.027837, 0.133207, -0.139723, -0.014962, 0.088542,
        0.525662, -0.494986,
    ];
    #[rustfmt::skip]
    const DARE_TIES: [f32; 20] = [
        -0.610094, -0.300044, -0.473377, -0.519491, -0.580141, 0.425269, 0.335254, 0.458452, 0.487546,
        0.586412, 0.225603, 0.32272, 0.390805, 0.402737, 0.520193, -0.880136, -0.218362, -0.464376,
        -0.536087, -0.527334,
    ];
    #[rustfmt::skip]
    const DARE_TIES_SVD_FREQUENCY: [f32; 20] = [
        -0.481041, 0.245847, -0.11907, 1.170716, -0.911565, 0.226949, 0.311271, 0.356695, 0.072902,
        -0.056503, 0.779694, 0.502013, 0.82637, -0.579809, 0.452013, 0.050674, -0.097299, -0.037678,
        -0.227811, 0.177339,
    ];
    #[rustfmt::skip]
    const TIES_A: [f32; 10] = [
        -1.088873, 0.372082, 0.343273, 0.0, -0.35602, -1.000102, 0.0, 0.355822, -1.074632, 0.410095,
    ];
    #[rustfmt::skip]
    const TIES_B: [f32; 8] = [
        0.802336, 1.024695, -0.740966, 0.813608, -0.446766, 0.651912, 0.960621, 0.0,
    ];
    #[rustfmt::skip]
    const SVD_OF_RANK_3: [f32; 20] = [
        -1.270067, 0.082821, 0.175892, 2.276943, -1.938111, 1.07766, 0.438976, 1.321175, 0.73366,
        0.470023, 2.120224, 0.652871, 1.147014, -1.218849, 1.070103, -0.052844, 0.030059, -0.649092,
        -1.120835, -0.438181,
    ];

    #[test]
    fn one_adapter_of_weight_one_is_that_adapter() {
        let adapters = adapters();
        for kind in Combination::ALL {
            let combined = combine(kind, &adapters[..1], &[1.0], &with_density(1.0)).unwrap();
            assert_close(combined.update(), &to_host(adapters[0].update()), 2e-6);
        }
    }

    #[test]
    fn cat_and_svd_of_enough_rank_are_the_sum_of_updates() {
        let [x, y, _] = adapters();
        let narrow = factors(&Z_A[..5], &Z_B[..4], 0.3);
        let sum = x.update() - y.update() * 0.25 + narrow.update() * 2.0;
        let (adapters, weights) = ([x, y, narrow], [1.0, -0.25, 2.0]);
        let options = CombineOptions::default().with_svd_rank(4);
        for (kind, rank) in [(Cat, 5), (Svd, 4)] {
            let combined = combine(kind, &adapters, &weights, &options).unwrap();
            assert_eq!(combined.rank(), rank);
            assert_close(combined.update(), &to_host(sum.clone()), 2e-6);
        }
    }

    #[test]
    fn the_order_of_the_adapters_does_not_matter_but_to_random_pruning() {
        let [x, y, z] = adapters();
        let turned = [z, x, y];
        let turned_weights = [WEIGHTS[2], WEIGHTS[0], WEIGHTS[1]];
        for kind in Combination::ALL {
            let options = with_density(0.6);
            let left = combine(kind, &adapters(), &WEIGHTS, &options).unwrap();
            let right = combine(kind, &turned, &turned_weights, &options).unwrap();
            if !matches!(kind.pruning(), Some(Pruning::Random)) {
                assert_close(left.update(), &to_host(right.update()), 5e-6);
            }
        }
    }

    #[test]
    fn svd_is_the_same_of_thin_and_of_dense_updates() {
        let [x, y, _] = adapters();
        let device = x.a.device();
        // Wide enough for the decomposition that does without the dense update.
        let widen = |f: Factors| {
            let a = Tensor::cat(vec![f.a.clone(); 3], 1);
            let b = Tensor::cat(vec![f.b, Tensor::ones([6, 2], &device)], 0);
            Factors::new(a, b, f.scale)
        };
        let adapters = [widen(x), widen(y)];
        let weights = [0.5, -2.0];
        let options = with_density(1.0);
        let thin = combine(Svd, &adapters, &weights, &options).unwrap();
        let dense = combine(DareLinearSvd, &adapters, &weights, &options).unwrap();
        assert_close(thin.update(), &to_host(dense.update()), 5e-6);
    }

    #[test]
    fn random_pruning_keeps_the_mean_and_follows_the_seed() {
        let ones = Tensor::<2>::ones([200, 200], &Device::flex());
        let pruned = keep_random(ones.clone(), 0.25, &mut rng(3));
        let values = to_host(pruned.clone());
        assert!(values.iter().all(|x| [0.0, 4.0].contains(x)));
        let mean = values.iter().sum::<f32>() / 4e4;
        // Five standard deviations.
        assert!((mean - 1.0).abs() < 0.044, "{mean}");
        let run = |seed| {
            let options = with_density(0.5).with_seed(seed);
            let combined = combine(DareTies, &adapters(), &WEIGHTS, &options).unwrap();
            to_host(combined.update())
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn magnitude_pruning_keeps_the_first_of_equal_elements() {
        let values = vec![1.0, -2.0, 0.5, 2.0, -1.0, 1.0];
        let matrix = from_host(values, [2, 3], &Device::flex());
        let pruned = |density| to_host(keep_largest(matrix.clone(), density));
        assert_eq!(pruned(0.5), [1.0, -2.0, 0.0, 2.0, 0.0, 0.0]);
        assert_eq!(pruned(0.1), [0.0; 6]);
        assert_eq!(pruned(1.0), to_host(matrix.clone()));
    }

    /// Where two adapters disagree, the elected sign's element alone counts: the stronger one's, or of as
    /// many on both sides the positive one. Where both are zero, none counts.
    #[test]
    fn ties_takes_the_mean_of_those_that_agree() {
        let device = Device::flex();
        let of = |values: [f32; 4]| from_host(values.to_vec(), [1, 4], &device);
        let matrices = vec![of([1.0, 3.0, 0.0, 0.0]), of([3.0, -1.0, -2.0, 0.0])];
        for method in [Total, Frequency] {
            let merged = disjoint_mean(matrices.clone(), &[1.0, 2.0], method);
            assert_close(merged, &[3.5, 3.0, -4.0, 0.0], 0.0);
        }
    }

    #[test]
    fn names_are_read_and_written() {
        for kind in Combination::ALL {
            assert_eq!(kind.to_string().parse::<Combination>().unwrap(), kind);
        }
        assert_eq!("frequency".parse::<MajoritySign>().unwrap(), Frequency);
        let error = "tie".parse::<Combination>().unwrap_err().to_string();
        assert!(error.contains("did you mean `ties`?"), "{error}");
    }

    #[test]
    fn what_cannot_be_combined_is_said() {
        let [x, y, _] = adapters();
        let narrow = factors(&Z_A[..5], &Z_B[..4], 1.0);
        let options = CombineOptions::default();
        let message = |kind, adapters: &[Factors], weights: &[f64], options: &CombineOptions| {
            let result = combine(kind, adapters, weights, options);
            result.unwrap_err().to_string()
        };
        let pair = [x.clone(), narrow];
        let error = message(Linear, &pair, &[1.0, 1.0], &options);
        assert!(error.contains("[2, 1]; take `cat`"), "{error}");
        let error = message(Ties, &pair, &[1.0, 1.0], &with_density(0.5));
        assert!(error.ends_with("or `ties_svd`"), "{error}");
        let pair = [x.clone(), y];
        assert!(message(Cat, &pair, &[1.0], &options).contains("as many"));
        assert!(message(Cat, &pair, &[1.0, f64::NAN], &options).contains("NaN"));
        assert!(message(Cat, &[], &[], &options).contains("at least one"));
        assert!(message(Ties, &pair, &[1.0; 2], &options).contains("0.5 say"));
        for density in [0.0, 1.5, f64::NAN] {
            let error = message(DareTies, &pair, &[1.0; 2], &with_density(density));
            assert!(error.starts_with("density"), "{error}");
        }
        for rank in [0, 5] {
            let error = message(Svd, &pair, &[1.0; 2], &options.clone().with_svd_rank(rank));
            assert!(error.ends_with("1 to 4"), "{error}");
        }
        let other = Factors::new(x.a.clone().narrow(1, 0, 3), x.b.clone(), 1.0);
        let error = message(Cat, &[x, other], &[1.0; 2], &options);
        assert!(error.contains("[4, 5] and [4, 3]"), "{error}");
    }
}
