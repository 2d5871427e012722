//! Singular value and QR decompositions of matrices: exact on the host, or randomised by matmuls on the
//! matrix's device.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use faer::traits::RealField;
use faer::{Mat, MatRef};

use super::random::{normal, rng};
use crate::{Error, Result};

/// How the leading singular vectors of a matrix are found.
///
/// On one core of a server the exact decomposition of a 1024 x 1024 matrix takes 0.5 s, of 2048 x 2048
/// 2.4 s and of 4096 x 4096 26 s; the randomised one of the last, of rank 16, takes 0.1 s with 2 iterations
/// and 0.7 s with 16. It is as good where the singular values fall quickly beyond the rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decomposition {
    /// All singular vectors, of which the leading ones are taken.
    Exact,
    /// Those in the range of the matrix's product with a few random vectors.
    Randomized {
        /// How often the random vectors are multiplied by the matrix and its transpose again. The further,
        /// the closer to the exact decomposition; 2 to 16 are usual.
        iterations: usize,
        /// Of the random vectors.
        seed: u64,
    },
}

/// `M = U·diag(S)·V^T`, the singular values from the largest to the smallest.
///
/// # Shapes
/// For a matrix `[m, n]` and k singular values: `u [m, k]`, `s [k]`, `vt [k, n]`.
pub(crate) struct Svd {
    pub(crate) u: Tensor<2>,
    pub(crate) s: Tensor<1>,
    pub(crate) vt: Tensor<2>,
}

impl Svd {
    /// The leading `rank` singular values and vectors, in memory of their own: a view would hold the others too.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn truncate(self, rank: usize) -> Self {
        let leading = Tensor::<1, Int>::arange(0..rank as i64, &self.s.device());
        Self {
            u: self.u.select(1, leading.clone()),
            s: self.s.select(0, leading.clone()),
            vt: self.vt.select(0, leading),
        }
    }
}

/// The `rank` leading singular values and vectors of `matrix`, f32 on its device and without a graph.
///
/// # Errors
/// As [`svd`].
///
/// # Panics
/// If the rank is greater than the smaller side of the matrix.
pub(crate) fn truncated_svd(
    matrix: Tensor<2>,
    rank: usize,
    decomposition: Decomposition,
) -> Result<Svd> {
    match decomposition {
        Decomposition::Exact => Ok(svd(matrix)?.truncate(rank)),
        Decomposition::Randomized { iterations, seed } => {
            randomized_svd(matrix, rank, iterations, seed)
        }
    }
}

/// The thin singular value decomposition of `matrix`, computed on the host: in f64 up to about
/// 1024 x 1024, in f32 beyond. The result is f32 on the matrix's device, without a graph.
///
/// # Errors
/// [`Error::InvalidArgument`] if a number is NaN or infinite.
pub(crate) fn svd(matrix: Tensor<2>) -> Result<Svd> {
    let [rows, cols] = matrix.dims();
    let device = matrix.device();
    let values = finite_values(matrix)?;
    let flops = rows * cols * rows.min(cols);
    let (u, s, vt) = if flops <= 1 << 30 {
        host_svd(&values, cols, f64::from, |x| *x as f32)?
    } else {
        host_svd(&values, cols, |x| x, |x| *x)?
    };
    let rank = s.len();
    Ok(Svd {
        u: from_host(u, [rows, rank], &device),
        s: Tensor::from_data(TensorData::new(s, [rank]), (&device, DType::F32)),
        vt: from_host(vt, [rank, cols], &device),
    })
}

/// `M = Q·R`, thin, computed on the host in f64. The result is f32 on the matrix's device, without a graph.
///
/// # Shapes
/// - `matrix`: `[m, n]`
/// - output: `[m, k]` with orthonormal columns and `[k, n]`, upper triangular, `k = min(m, n)`
///
/// # Errors
/// [`Error::InvalidArgument`] if a number is NaN or infinite.
pub(crate) fn qr(matrix: Tensor<2>) -> Result<(Tensor<2>, Tensor<2>)> {
    let [rows, cols] = matrix.dims();
    let rank = rows.min(cols);
    let device = matrix.device();
    let values = finite_values(matrix)?;
    let qr = row_major(&values, cols, f64::from).qr();
    let to_f32 = |x: &f64| *x as f32;
    let q = flatten(qr.compute_thin_Q().as_ref(), to_f32);
    let r = flatten(qr.thin_R(), to_f32);
    Ok((
        from_host(q, [rows, rank], &device),
        from_host(r, [rank, cols], &device),
    ))
}

/// The `rank` leading singular values and vectors of a product `B·A` of thin matrices, exactly, without
/// the product: with `B = Q_B R_B` and `A^T = Q_A R_A` they are those of the small `R_B R_A^T`.
///
/// # Shapes
/// - `b`: `[m, k]`, `a`: `[k, n]`
///
/// # Errors
/// As [`svd`].
///
/// # Panics
/// If the rank is greater than the smaller side of the product.
pub(crate) fn svd_of_product(b: Tensor<2>, a: Tensor<2>, rank: usize) -> Result<Svd> {
    let ([rows, inner], [_, cols]) = (b.dims(), a.dims());
    if inner >= rows.min(cols) || rank > inner {
        return Ok(svd(b.matmul(a))?.truncate(rank));
    }
    let (q_b, r_b) = qr(b)?;
    let (q_a, r_a) = qr(a.transpose())?;
    let small = svd(r_b.matmul(r_a.transpose()))?.truncate(rank);
    Ok(Svd {
        u: q_b.matmul(small.u),
        s: small.s,
        vt: small.vt.matmul(q_a.transpose()),
    })
}

/// The `rank` leading singular values and vectors by the randomised subspace iteration: the columns of
/// `Q` span `(M M^T)^iterations M Ω` with a Gaussian `Ω`, orthonormalised after each product, and the
/// decomposition is that of `Q Q^T M`. Halko, Martinsson and Tropp, algorithms 4.4 and 5.1,
/// <https://arxiv.org/abs/0909.4061>.
fn randomized_svd(matrix: Tensor<2>, rank: usize, iterations: usize, seed: u64) -> Result<Svd> {
    // What the paper advises to draw beyond the rank.
    const OVERSAMPLING: usize = 10;
    let [rows, cols] = matrix.dims();
    let samples = rank + OVERSAMPLING;
    if samples >= rows.min(cols) {
        return Ok(svd(matrix)?.truncate(rank));
    }
    let matrix = matrix.detach().cast(DType::F32);
    let omega = normal(&mut rng(seed), cols * samples);
    let omega = from_host(omega, [cols, samples], &matrix.device());
    let (mut q, _) = qr(matrix.clone().matmul(omega))?;
    for _ in 0..iterations {
        let (back, _) = qr(matrix.clone().transpose().matmul(q))?;
        (q, _) = qr(matrix.clone().matmul(back))?;
    }
    let small = svd(q.clone().transpose().matmul(matrix))?.truncate(rank);
    Ok(Svd {
        u: q.matmul(small.u),
        ..small
    })
}

/// `U`, `S` and `V^T` in row-major order, computed in the numbers `T`.
fn host_svd<T: RealField>(
    values: &[f32],
    cols: usize,
    from_f32: fn(f32) -> T,
    to_f32: fn(&T) -> f32,
) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
    let svd = row_major(values, cols, from_f32).thin_svd();
    let svd = svd.map_err(|_| no_decomposition("its singular values were not found"))?;
    let s = svd.S().column_vector().iter().map(to_f32).collect();
    Ok((
        flatten(svd.U(), to_f32),
        s,
        flatten(svd.V().transpose(), to_f32),
    ))
}

fn row_major<T>(values: &[f32], cols: usize, from_f32: fn(f32) -> T) -> Mat<T> {
    let value = |row: usize, col: usize| from_f32(values[row * cols + col]);
    Mat::from_fn(values.len() / cols, cols, value)
}

fn flatten<T>(matrix: MatRef<'_, T>, to_f32: fn(&T) -> f32) -> Vec<f32> {
    let rows = 0..matrix.nrows();
    rows.flat_map(|row| (0..matrix.ncols()).map(move |col| to_f32(&matrix[(row, col)])))
        .collect()
}

/// An f32 tensor whatever the device's usual type is, since half of the digits of a decomposition would be
/// lost otherwise.
pub(crate) fn from_host(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

pub(crate) fn to_host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.detach().cast(DType::F32).into_data();
    data.try_into_vec().expect("the tensor was cast to f32")
}

/// The numbers of a matrix that is to be decomposed: with NaN the iterations for singular values end late
/// and without a result.
pub(crate) fn finite_values(matrix: Tensor<2>) -> Result<Vec<f32>> {
    let values = to_host(matrix);
    match values.iter().all(|x| x.is_finite()) {
        true => Ok(values),
        false => Err(no_decomposition("it holds NaN or infinite numbers")),
    }
}

fn no_decomposition(why: &str) -> Error {
    Error::InvalidArgument {
        name: "matrix",
        message: format!(
            "{why}, so it has no singular value decomposition; look for broken weights, activations or \
             adapters"
        ),
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    const EXACT: Decomposition = Decomposition::Exact;

    fn gaussian(shape: [usize; 2], seed: u64) -> Tensor<2> {
        let values = normal(&mut rng(seed), shape[0] * shape[1]);
        from_host(values, shape, &Device::flex())
    }

    /// With the singular values `decay^0, decay^1, ...`.
    fn decaying([rows, cols]: [usize; 2], decay: f32) -> Tensor<2> {
        let rank = rows.min(cols);
        let s: Vec<f32> = (0..rank).map(|i| decay.powi(i as i32)).collect();
        let s = from_host(s, [1, rank], &Device::flex());
        let (u, _) = qr(gaussian([rows, rank], 1)).unwrap();
        let (v, _) = qr(gaussian([cols, rank], 2)).unwrap();
        (u * s).matmul(v.transpose())
    }

    fn product(svd: &Svd) -> Tensor<2> {
        let s = svd.s.clone().unsqueeze_dim(0);
        (svd.u.clone() * s).matmul(svd.vt.clone())
    }

    #[track_caller]
    fn assert_close<const D: usize>(left: Tensor<D>, right: Tensor<D>, tolerance: f32) {
        assert_eq!(left.dims(), right.dims());
        let worst: f32 = (left - right).abs().max().into_scalar();
        assert!(worst <= tolerance, "{worst}");
    }

    #[track_caller]
    fn assert_orthonormal_columns(q: &Tensor<2>) {
        let eye = Tensor::eye(q.dims()[1], &q.device());
        assert_close(q.clone().transpose().matmul(q.clone()), eye, 2e-6);
    }

    #[test]
    fn svd_gives_the_matrix_from_orthonormal_factors() {
        for shape in [[7, 5], [5, 7], [6, 6], [1, 4]] {
            let matrix = gaussian(shape, 3);
            let svd = svd(matrix.clone()).unwrap();
            assert_close(product(&svd), matrix, 2e-6);
            assert_orthonormal_columns(&svd.u);
            assert_orthonormal_columns(&svd.vt.clone().transpose());
            let s = to_host(svd.s);
            assert!(s.windows(2).all(|pair| pair[0] >= pair[1]), "{s:?}");
        }
    }

    /// By NumPy 2.4.
    #[test]
    fn svd_has_these_singular_values() {
        let values = vec![0.5, -1.0, 0.25, 2.0, 1.5, 0.75, -0.5, 0.1];
        let svd = svd(from_host(values, [2, 4], &Device::flex())).unwrap();
        let expected = Tensor::from_data(SINGULAR_VALUES, &Device::flex());
        assert_close(svd.s, expected, 1e-6);
    }

    const SINGULAR_VALUES: [f32; 2] = [2.3054302, 1.7521392];

    #[test]
    fn a_matrix_without_full_rank_has_zeros_behind() {
        let matrix = gaussian([8, 3], 1).matmul(gaussian([3, 6], 2));
        let svd = svd(matrix.clone()).unwrap();
        assert_orthonormal_columns(&svd.u);
        assert!(to_host(svd.s.clone())[3..].iter().all(|s| *s < 1e-6));
        assert_close(product(&svd.truncate(3)), matrix, 2e-6);
        let zero = super::svd(Tensor::zeros([3, 2], &Device::flex())).unwrap();
        assert_eq!(to_host(zero.s), [0.0, 0.0]);
        assert_orthonormal_columns(&zero.u);
    }

    #[test]
    fn f32_is_as_good_as_a_large_matrix_needs() {
        let matrix = decaying([96, 80], 0.9);
        let values = to_host(matrix.clone());
        let (u, s, vt) = host_svd(&values, 80, |x| x, |x| *x).unwrap();
        let device = Device::flex();
        let svd = Svd {
            u: from_host(u, [96, 80], &device),
            s: Tensor::from_data(&s[..], &device),
            vt: from_host(vt, [80, 80], &device),
        };
        assert_close(product(&svd), matrix, 5e-6);
        for (i, s) in s.iter().enumerate() {
            assert!((s - 0.9f32.powi(i as i32)).abs() < 5e-6, "{i}: {s}");
        }
    }

    #[test]
    fn qr_gives_the_matrix_from_a_triangular_factor() {
        for shape in [[7, 5], [5, 7]] {
            let matrix = gaussian(shape, 4);
            let (q, r) = qr(matrix.clone()).unwrap();
            assert_close(q.clone().matmul(r.clone()), matrix, 2e-6);
            assert_orthonormal_columns(&q);
            assert_close(r.clone().triu(0), r, 0.0);
        }
    }

    #[test]
    fn a_product_of_thin_matrices_has_the_svd_of_the_product() {
        for (rows, inner, cols, rank) in [(12, 3, 9, 3), (12, 3, 9, 2), (4, 6, 5, 3), (9, 2, 9, 4)]
        {
            let (b, a) = (gaussian([rows, inner], 5), gaussian([inner, cols], 6));
            let thin = svd_of_product(b.clone(), a.clone(), rank).unwrap();
            let dense = svd(b.matmul(a)).unwrap().truncate(rank);
            assert_orthonormal_columns(&thin.u);
            assert_close(product(&thin), product(&dense), 1e-5);
            assert_close(thin.s, dense.s, 1e-5);
        }
    }

    #[test]
    fn the_randomised_decomposition_agrees_where_the_spectrum_decays() {
        let matrix = decaying([120, 90], 0.7);
        let exact = truncated_svd(matrix.clone(), 6, EXACT).unwrap();
        for (iterations, tolerance) in [(0, 2e-2), (2, 2e-6)] {
            let method = Decomposition::Randomized {
                iterations,
                seed: 9,
            };
            let random = truncated_svd(matrix.clone(), 6, method).unwrap();
            assert_orthonormal_columns(&random.u);
            assert_close(product(&random), product(&exact), tolerance);
            assert_close(random.s, exact.s.clone(), tolerance);
        }
    }

    #[test]
    fn a_small_matrix_is_decomposed_exactly_by_either() {
        let matrix = gaussian([12, 10], 1);
        let method = Decomposition::Randomized {
            iterations: 0,
            seed: 0,
        };
        let random = truncated_svd(matrix.clone(), 3, method).unwrap();
        let exact = truncated_svd(matrix, 3, EXACT).unwrap();
        assert_close(product(&random), product(&exact), 0.0);
    }

    #[test]
    fn numbers_that_are_not_finite_are_an_error() {
        for broken in [f32::NAN, f32::INFINITY] {
            let matrix = gaussian([40, 30], 1).slice_fill([3..4, 2..3], broken);
            let random = Decomposition::Randomized {
                iterations: 1,
                seed: 0,
            };
            for method in [EXACT, random] {
                let result = truncated_svd(matrix.clone(), 2, method).map(|_| ());
                let message = result.unwrap_err().to_string();
                assert!(message.contains("NaN or infinite"), "{message}");
            }
            assert!(qr(matrix).is_err());
        }
    }

    #[test]
    fn half_precision_is_decomposed_in_f32_and_without_a_graph() {
        let matrix = gaussian([5, 4], 1).cast(DType::BF16);
        let tracked = matrix.autodiff().require_grad();
        let svd = svd(tracked).unwrap();
        assert_eq!((svd.u.dtype(), svd.s.dtype()), (DType::F32, DType::F32));
        assert!(!svd.u.is_require_grad());
    }
}
