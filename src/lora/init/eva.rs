use burn::tensor::{DType, Tensor};

use super::FirstValues;
use crate::lora::linalg::{Svd, svd, to_host};
use crate::{Error, Result};

/// EVA: `A` spans the directions in which a layer's inputs vary most over the data to be trained on, and
/// `B = 0`. Paischer et al., *Parameter Efficient Fine-tuning via Explained Variance Adaptation*,
/// <https://arxiv.org/abs/2410.07170>.
///
/// This takes the inputs batch by batch and keeps their mean and leading principal components, by the
/// incremental decomposition of Ross et al., <https://doi.org/10.1007/s11263-007-0075-7>: that of
///
/// `[S·V^T; X - mean(X); sqrt(n·m / (n + m))·(mean - mean(X))]`,
///
/// where `S·V^T` and `mean` are of the n rows before and `X` are the m new ones. Twice the components
/// asked for are kept, so that what is cut off early can hardly come to matter later.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_peft::lora::init::ActivationStatistics;
///
/// # let device = Device::flex();
/// let mut inputs = ActivationStatistics::new(3, 2);
/// let batch = [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, -0.1, 0.0]];
/// inputs.update(Tensor::from_data(batch, &device))?;
/// let first = inputs.first_values(1, 5)?;
/// assert_eq!((first.a.dims(), first.b.dims()), ([1, 3], [5, 1]));
/// assert!(inputs.explained_variance_ratios()[0] > 0.98);
/// # Ok::<(), burn_peft::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ActivationStatistics {
    in_dim: usize,
    components: usize,
    rows: usize,
    /// The sum of the squared deviations from the mean, over all elements.
    deviation: f64,
    /// What the rows so far are like, once there are some.
    seen: Option<Seen>,
    /// Of each component with what it was before the last batch.
    similarities: Vec<f32>,
}

#[derive(Debug, Clone)]
struct Seen {
    /// `[1, in]`
    mean: Tensor<2>,
    /// `[k]`
    s: Tensor<1>,
    /// `[k, in]`
    vt: Tensor<2>,
}

impl ActivationStatistics {
    /// Statistics of no input yet, of which the `components` leading ones can be asked for later: the
    /// layer's rank, or [`largest_rank`] if ranks are redistributed.
    pub fn new(in_dim: usize, components: usize) -> Self {
        Self {
            in_dim,
            components,
            rows: 0,
            deviation: 0.0,
            seen: None,
            similarities: Vec::new(),
        }
    }

    /// Takes a batch of the layer's inputs, on the same device each time: a row for each token, those that do not count
    /// (padding, prompts) left out.
    ///
    /// The memory needed does not grow with the number of batches, nor with their size.
    ///
    /// # Shapes
    /// - `x`: `[n, in]`
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a number is NaN or infinite; the batch's rows before it may count.
    ///
    /// # Panics
    /// If the inputs are not as wide as the layer.
    pub fn update(&mut self, x: Tensor<2>) -> Result<()> {
        // A decomposition of a few hundred rows takes a tenth of a second, of thousands minutes.
        const BLOCK: usize = 256;
        let [rows, in_dim] = x.dims();
        assert_eq!(in_dim, self.in_dim, "the inputs' width is not the layer's");
        let before = self.directions();
        for start in (0..rows).step_by(BLOCK) {
            let block = x.clone().narrow(0, start, BLOCK.min(rows - start));
            self.update_block(block.detach().cast(DType::F32))?;
        }
        self.similarities = match (before, self.directions()) {
            (Some(before), Some(after)) => cosines(before, after),
            _ => Vec::new(),
        };
        Ok(())
    }

    fn update_block(&mut self, x: Tensor<2>) -> Result<()> {
        let [rows, _] = x.dims();
        let new_mean = x.clone().mean_dim(0);
        let centred = x - new_mean.clone();
        let (n, m) = (self.rows as f64, rows as f64);
        let mut parts = vec![centred.clone()];
        let mut mean = new_mean.clone();
        if let Some(seen) = self.seen.clone() {
            let apart = seen.mean.clone() - new_mean.clone();
            parts.push(seen.vt * seen.s.unsqueeze_dim(1));
            parts.push(apart.clone() * (n * m / (n + m)).sqrt());
            mean = new_mean + apart * (n / (n + m));
        }
        let Svd { s, vt, .. } = svd(Tensor::cat(parts.clone(), 0))?;
        // The components kept before hold less than all of the deviations before.
        self.deviation += squares(centred) + parts.get(2).cloned().map_or(0.0, squares);
        self.rows += rows;
        let kept = (2 * self.components).min(s.dims()[0]);
        let vt = with_largest_positive(vt.narrow(0, 0, kept));
        let s = s.narrow(0, 0, kept);
        self.seen = Some(Seen { mean, s, vt });
        Ok(())
    }

    /// How many rows were taken.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The share of the inputs' variance that lies along each component, from the largest to the
    /// smallest. As many as were asked for, or fewer after few inputs.
    pub fn explained_variance_ratios(&self) -> Vec<f32> {
        let s = self.seen.as_ref().map(|seen| to_host(seen.s.clone()));
        let ratio = |s: f32| (f64::from(s).powi(2) / self.deviation.max(f64::MIN_POSITIVE)) as f32;
        let s = s.into_iter().flatten().take(self.components);
        s.map(ratio).collect()
    }

    /// Whether the last batch left each of the `rank` leading components where it was: the cosine between
    /// what it was before and after is at least `tau`. The paper stops taking batches at 0.99.
    pub fn has_converged(&self, rank: usize, tau: f32) -> bool {
        let leading = self.similarities.get(..rank);
        leading.is_some_and(|cosines| cosines.iter().all(|cosine| *cosine >= tau))
    }

    /// The first values of an adapter: `A` the `rank` leading components, of length 1, and `B = 0`. The
    /// largest element of each component is positive.
    ///
    /// # Shapes
    /// - output: `a [r, in]`, `b [out, r]`
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the rank is zero, or greater than the number of components, of inputs
    /// or of their width.
    pub fn first_values(&self, rank: usize, out_dim: usize) -> Result<FirstValues> {
        let directions = self.directions();
        let found = directions.as_ref().map_or(0, |vt| vt.dims()[0]);
        match directions {
            Some(vt) if (1..=found).contains(&rank) => {
                let b = Tensor::zeros([out_dim, rank], (&vt.device(), DType::F32));
                Ok(FirstValues::unshifted(vt.narrow(0, 0, rank), b))
            }
            _ => Err(Error::InvalidArgument {
                name: "rank",
                message: format!(
                    "{rank} components of the inputs are needed, but {} inputs of width {} gave {found}, \
                     of at most {}; take more inputs, or another rank",
                    self.rows, self.in_dim, self.components
                ),
            }),
        }
    }

    /// `[k, in]`, at most as many as were asked for.
    fn directions(&self) -> Option<Tensor<2>> {
        let vt = self.seen.as_ref()?.vt.clone();
        let [kept, _] = vt.dims();
        Some(vt.narrow(0, 0, kept.min(self.components)))
    }
}

/// The sign of a singular vector is not determined; this one is the same on every device.
fn with_largest_positive(vt: Tensor<2>) -> Tensor<2> {
    let largest = vt.clone().abs().argmax(1);
    let sign = vt.clone().gather(1, largest).sign();
    vt * sign
}

fn squares(x: Tensor<2>) -> f64 {
    let squares = to_host(x.square().sum_dim(1));
    squares.into_iter().map(f64::from).sum()
}

/// Between the rows of two matrices of unit vectors, as many as both have.
fn cosines(left: Tensor<2>, right: Tensor<2>) -> Vec<f32> {
    let ([rows_left, _], [rows_right, _]) = (left.dims(), right.dims());
    let rows = rows_left.min(rows_right);
    let products = left.narrow(0, 0, rows) * right.narrow(0, 0, rows);
    to_host(products.sum_dim(1).abs())
}

/// The largest rank that a layer of the rank `rank` can have after [`redistribute_ranks`]: `rank·rho`,
/// rounded.
pub fn largest_rank(rank: usize, rho: f64) -> usize {
    (rank as f64 * rho).round_ties_even() as usize
}

/// EVA's ranks: as many in sum as `ranks`, given to the components of all layers that explain the largest
/// share of their layer's variance, but none more than [`largest_rank`]. Among equal shares the layer
/// named first comes first.
///
/// A layer may get rank 0: it then needs no adapter. To keep its scale `alpha / r`, a layer whose rank
/// changes needs its alpha multiplied by the new rank over the old one.
///
/// `ratios` are each layer's [`explained_variance_ratios`](ActivationStatistics::explained_variance_ratios).
/// With `rho` 1 nothing changes; PEFT's default is 2.
///
/// # Errors
/// [`Error::InvalidArgument`] if `rho` is below 1, or if a layer has fewer ratios than its largest rank.
///
/// # Panics
/// If there are not as many layers in `ranks` as in `ratios`.
pub fn redistribute_ranks(ranks: &[usize], ratios: &[Vec<f32>], rho: f64) -> Result<Vec<usize>> {
    assert_eq!(ranks.len(), ratios.len(), "each layer has its ratios");
    check_rho(rho)?;
    let mut candidates = Vec::new();
    for (layer, (rank, ratios)) in ranks.iter().zip(ratios).enumerate() {
        let largest = largest_rank(*rank, rho);
        let leading = ratios.get(..largest).ok_or_else(|| Error::InvalidArgument {
            name: "ratios",
            message: format!(
                "layer {layer} has {} components, but may get rank {largest}; ask for as many, and take \
                 more inputs, or lower rho",
                ratios.len()
            ),
        })?;
        candidates.extend(leading.iter().map(|ratio| (*ratio, layer)));
    }
    // Stable, so that equal ratios stay in the layers' order.
    candidates.sort_by(|(left, _), (right, _)| right.total_cmp(left));
    let mut new_ranks = vec![0; ranks.len()];
    let budget = ranks.iter().sum();
    for (_, layer) in candidates.into_iter().take(budget) {
        new_ranks[layer] += 1;
    }
    Ok(new_ranks)
}

/// # Errors
/// [`Error::InvalidArgument`] if it is below 1.
pub(crate) fn check_rho(rho: f64) -> Result<()> {
    match rho >= 1.0 && rho.is_finite() {
        true => Ok(()),
        false => Err(Error::InvalidArgument {
            name: "rho",
            message: format!("{rho} is below 1; no redistribution is 1, usual is 2"),
        }),
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::lora::init::tests::assert_close;
    use crate::lora::linalg::from_host;
    use crate::lora::random::{normal, rng};

    fn inputs() -> Tensor<2> {
        from_host(INPUTS.to_vec(), [12, 4], &Device::flex())
    }

    fn of_batches(x: &Tensor<2>, components: usize, batch: usize) -> ActivationStatistics {
        let [rows, in_dim] = x.dims();
        let mut statistics = ActivationStatistics::new(in_dim, components);
        for start in (0..rows).step_by(batch) {
            let x = x.clone().narrow(0, start, batch.min(rows - start));
            statistics.update(x).unwrap();
        }
        statistics
    }

    /// By the incremental PCA of PEFT 0.21.2 in batches of 4, without its random approximation, and by
    /// NumPy from all inputs at once.
    #[test]
    fn the_components_are_those_of_peft() {
        for batch in [1, 4, 5, 12] {
            let statistics = of_batches(&inputs(), 2, batch);
            let first = statistics.first_values(2, 3).unwrap();
            assert_close(first.a, &COMPONENTS, 3e-6);
            assert_close(first.b, &[0.0; 6], 0.0);
            let ratios = statistics.explained_variance_ratios();
            assert_eq!((statistics.rows(), ratios.len()), (12, 2));
            assert!((ratios[0] - 0.710471).abs() < 2e-6, "{ratios:?}");
            assert!((ratios[1] - 0.20075).abs() < 2e-6, "{ratios:?}");
        }
    }

    #[rustfmt::skip]
    const INPUTS: [f32; 48] = [
        0.0, 1.046, 0.103, 1.016, 1.288, -0.532, 0.371, 1.087, 0.67, 0.028, 0.211, 0.7, 0.034, 0.506,
        0.39, 1.022, -1.958, -0.351, 0.775, 1.098, -1.951, 0.184, 1.05, 1.042, 0.134, -0.143, 0.976,
        0.711, 0.509, 0.95, 1.058, 1.1, 1.459, 0.756, 0.109, 0.917, 0.302, -0.617, 1.013, 0.907, 1.548,
        1.169, 1.069, 1.097, 0.245, -0.415, 1.098, 0.732,
    ];
    // PEFT makes the largest element of each positive too.
    #[rustfmt::skip]
    const COMPONENTS: [f32; 8] = [
        0.968339, 0.220221, -0.116733, -0.013965, -0.229735, 0.959512, -0.109966, 0.120272,
    ];

    /// 600 inputs of width 32 with three directions far above the rest.
    fn spiked() -> Tensor<2> {
        let device = Device::flex();
        let mut rng = rng(4);
        let mut gaussian =
            |rows, cols| from_host(normal(&mut rng, rows * cols), [rows, cols], &device);
        let strong = gaussian(600, 3).matmul(gaussian(3, 32));
        strong + gaussian(600, 32) * 0.1 + 5.0
    }

    #[test]
    fn batches_and_cut_components_give_nearly_the_components_of_all_inputs() {
        let whole = of_batches(&spiked(), 32, 600);
        let batches = of_batches(&spiked(), 3, 7);
        let of = |statistics: &ActivationStatistics| statistics.first_values(3, 1).unwrap().a;
        assert_close(of(&batches), &to_host(of(&whole)), 2e-3);
        let ratios = whole.explained_variance_ratios();
        assert!((ratios.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        for (found, ratio) in batches.explained_variance_ratios().iter().zip(ratios) {
            assert!((found - ratio).abs() < 1e-4, "{found} {ratio}");
        }
    }

    #[test]
    fn statistics_converge_when_batches_change_nothing() {
        let mut statistics = ActivationStatistics::new(32, 3);
        let (first, second) = (spiked().narrow(0, 0, 10), spiked().narrow(0, 10, 500));
        statistics.update(first).unwrap();
        assert!(!statistics.has_converged(3, 0.0));
        statistics.update(second).unwrap();
        assert!(!statistics.has_converged(3, 0.99));
        statistics.update(spiked().narrow(0, 510, 90)).unwrap();
        assert!(statistics.has_converged(3, 0.99));
        assert!(!statistics.has_converged(4, 0.0));
    }

    #[test]
    fn too_few_inputs_and_broken_ones_are_errors() {
        let mut statistics = ActivationStatistics::new(4, 3);
        assert!(statistics.first_values(1, 2).is_err());
        statistics.update(inputs().narrow(0, 0, 2)).unwrap();
        let error = statistics.first_values(3, 2).unwrap_err().to_string();
        assert!(error.contains("2 inputs of width 4 gave 2"), "{error}");
        let broken = inputs().slice_fill([0..1, 0..1], f32::NAN);
        assert!(statistics.update(broken).is_err());
        assert_eq!(statistics.rows(), 2);
        statistics.update(inputs()).unwrap();
        assert!(statistics.first_values(3, 2).is_ok());
        assert!(statistics.first_values(4, 2).is_err());
    }

    #[test]
    fn ranks_go_where_the_variance_is_explained() {
        let ratios = [
            vec![0.5, 0.2, 0.1, 0.05],
            vec![0.9, 0.04, 0.03, 0.02],
            vec![0.3, 0.25, 0.15, 0.1],
        ];
        let ranks = |rho| redistribute_ranks(&[2, 2, 2], &ratios, rho).unwrap();
        assert_eq!(ranks(1.0), [2, 2, 2]);
        // The six largest: 0.9, 0.5, 0.3, 0.25, 0.2, 0.15.
        assert_eq!(ranks(2.0), [2, 1, 3]);
        // 1.5 * 2 = 3 components of each.
        assert_eq!(ranks(1.5), [2, 1, 3]);
        let equal = vec![vec![0.25; 2]; 3];
        assert_eq!(redistribute_ranks(&[1; 3], &equal, 2.0).unwrap(), [2, 1, 0]);
    }

    #[test]
    fn a_redistribution_needs_enough_components() {
        let ratios = [vec![0.5, 0.2], vec![0.9, 0.04, 0.01, 0.0]];
        let error = redistribute_ranks(&[2, 2], &ratios, 2.0).unwrap_err();
        assert!(error.to_string().contains("layer 0 has 2"), "{error}");
        assert!(redistribute_ranks(&[1, 1], &ratios, 0.5).is_err());
        assert!(redistribute_ranks(&[1, 1], &ratios, f64::NAN).is_err());
    }
}
