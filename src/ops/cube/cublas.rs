//! Products by NVIDIA's cuBLAS, on CUDA devices where it is installed.
//!
//! CubeCL keeps its streams to itself, so products go to a stream of their own. Events of the whole
//! context put them in their place among CubeCL's kernels: one makes the product wait for all that was
//! submitted before it, another makes all that is submitted later wait for the product.

use std::ffi::c_void;
use std::sync::Mutex;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::device::DeviceId;
use cubecl::device_handle::DeviceHandle;
use cubecl::ir::features::Plane;
use cubecl::server::{BufferBinding, ServerError, ServerStorage};
use cubecl_environment::backtrace::BackTrace;
use cubecl_server::stream::failed_writing;
use cudarc::cublas::result::{self as cublas, CublasError};
use cudarc::cublas::sys;
use cudarc::driver::result::{ctx, event, stream};
use cudarc::driver::{DriverError, sys as driver};

use super::cuda::{Server, in_context, is_cuda};
use super::empty;
use crate::ops::{MatmulPrecision, matmul_precision};

/// `scale · a b` of the last two dimensions, with sums in f32, written as `dtype`; none if cuBLAS is not
/// there, or does not take such tensors.
pub fn product(a: &CubeTensor, b: &CubeTensor, scale: f32, dtype: DType) -> Option<CubeTensor> {
    let gemm = Gemm::new(a, b, dtype)?;
    let device = device(a)?;
    let mut shape = a.shape();
    shape[a.shape().num_dims() - 1] = gemm.n as usize;
    let out = empty(a, shape, dtype);
    device.submit(Gemm { scale, ..gemm }, [a, b, &out]);
    Some(out)
}

/// Adds `a b` to `sum`, whose numbers lie one after another and are nobody else's. Whether it did.
pub fn add_product(sum: &CubeTensor, a: &CubeTensor, b: &CubeTensor) -> bool {
    let added = Gemm::new(a, b, sum.dtype).zip(device(a));
    let is_added = added.is_some();
    if let Some((gemm, device)) = added {
        device.submit(Gemm { kept: 1.0, ..gemm }, [a, b, sum]);
    }
    is_added
}

/// Each device with what was opened there, if it was, and how often that was tried.
static DEVICES: Mutex<Vec<(DeviceId, Option<Device>, usize)>> = Mutex::new(Vec::new());

/// Where memory is short, opening may fail at first. Where it always fails (a cuBLAS for other cards or
/// drivers), products are CubeCL's.
const MAX_TRIES: usize = 8;

#[derive(Clone)]
struct Device {
    server: DeviceHandle<Server>,
    cublas: Cublas,
}

/// Whether products of tensors on the device of `tensor` are cuBLAS's.
pub fn is_used(tensor: &CubeTensor) -> bool {
    device(tensor).is_some()
}

impl Device {
    /// Submits a product of the first two operands to the third. If it fails, reading the third will.
    fn submit(self, gemm: Gemm, operands: [&CubeTensor; 3]) {
        let operands = operands.map(|tensor| tensor.handle.clone().binding());
        self.server.submit(move |server| {
            let out = operands[2].clone();
            if let Err(error) = run(server, operands, &self.cublas, &gemm) {
                failed_writing(server, out.stream, vec![out], error);
            }
        });
    }
}

/// The device of `tensor`, if products are cuBLAS's there.
fn device(tensor: &CubeTensor) -> Option<Device> {
    if !is_cuda(tensor) {
        return None;
    }
    let id = tensor.client.service_id().device;
    let mut devices = DEVICES.lock().expect("no panic while it is held");
    let known = devices.iter().position(|(known, ..)| *known == id);
    let index = known.unwrap_or(devices.len());
    if known.is_none() {
        devices.push((id, None, 0));
    }
    let (_, device, tries) = &mut devices[index];
    if device.is_none() && *tries < MAX_TRIES {
        *tries += 1;
        *device = open(tensor, id);
    }
    device.clone()
}

fn open(tensor: &CubeTensor, id: DeviceId) -> Option<Device> {
    let cublas = is_installed().then(|| in_context(tensor, Cublas::open))??;
    let server = DeviceHandle::new(id);
    Some(Device { server, cublas })
}

/// Whether there are cuBLAS and a driver, from 12.5 on, with events of a context.
fn is_installed() -> bool {
    // SAFETY: loads the library.
    let has_cublas = unsafe { sys::is_culib_present() };
    has_cublas && ContextEvents::find().is_some()
}

type OfContext = unsafe extern "C" fn(driver::CUcontext, driver::CUevent) -> driver::CUresult;

/// The driver's functions for events of a whole context, which a toolkit before 12.5 does not declare.
#[derive(Clone, Copy)]
struct ContextEvents {
    record: OfContext,
    wait: OfContext,
}

impl ContextEvents {
    fn find() -> Option<Self> {
        // SAFETY: the driver declares both of this type.
        let find = |name: &[u8]| unsafe { driver::culib().get::<OfContext>(name) };
        Some(Self {
            record: *find(b"cuCtxRecordEvent").ok()?,
            wait: *find(b"cuCtxWaitEvent").ok()?,
        })
    }
}

/// cuBLAS on one device, for the life of the process. Only the device's own thread calls it.
#[derive(Clone, Copy)]
struct Cublas {
    handle: sys::cublasHandle_t,
    context: driver::CUcontext,
    stream: driver::CUstream,
    event: driver::CUevent,
    of_context: ContextEvents,
}

// SAFETY: what these point to belongs to the driver, and to no thread.
unsafe impl Send for Cublas {}

impl Cublas {
    /// Of the current context.
    fn open() -> Option<Self> {
        let of_context = ContextEvents::find()?;
        let context = ctx::get_current().ok()??;
        // What most likely fails comes first: nothing has to be given back then.
        let handle = cublas::create_handle().ok()?;
        let stream = stream::create(stream::StreamKind::NonBlocking).ok()?;
        let event = event::create(driver::CUevent_flags::CU_EVENT_DISABLE_TIMING).ok()?;
        let f32_sums = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: handle and stream were made above.
        unsafe {
            cublas::set_stream(handle, stream.cast()).ok()?;
            sys::cublasSetMathMode(handle, f32_sums).result().ok()?;
        }
        Some(Self {
            handle,
            context,
            stream,
            event,
            of_context,
        })
    }

    /// Makes the stream wait for all that was submitted to the device.
    fn enter(&self) -> Result<(), DriverError> {
        // SAFETY: all of one context, and alive.
        unsafe {
            (self.of_context.record)(self.context, self.event).result()?;
            let flags = driver::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            stream::wait_event(self.stream, self.event, flags)
        }
    }

    /// Makes all that will be submitted to the device wait for the stream.
    fn leave(&self) -> Result<(), DriverError> {
        // SAFETY: all of one context, and alive.
        unsafe {
            event::record(self.event, self.stream)?;
            (self.of_context.wait)(self.context, self.event).result()
        }
    }
}

/// Submits a product, on the device's own thread.
fn run(
    server: &mut Server,
    operands: [BufferBinding; 3],
    cublas: &Cublas,
    gemm: &Gemm,
) -> Result<(), ServerError> {
    // The output was made on the stream of now.
    let stream = operands[2].stream;
    // While these live, nothing else gets their memory.
    let mut resources = Vec::new();
    for binding in operands {
        resources.push(server.get_resource(binding, stream)?);
    }
    let at = |i: usize| resources[i].resource().ptr as *mut c_void;
    cublas.enter().map_err(failed)?;
    gemm.run(cublas.handle, at(0), at(1), at(2))
        .map_err(failed)?;
    cublas.leave().map_err(failed)
}

fn failed(cause: impl std::error::Error) -> ServerError {
    ServerError::Generic {
        reason: format!("a product by cuBLAS failed: {cause}"),
        backtrace: BackTrace::capture(),
    }
}

/// A batch of matrices `[rows, columns]` that lie row after row, or column after column.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Matrices {
    rows: usize,
    columns: usize,
    by_columns: bool,
    /// From one row (or column) to the next.
    leading: i32,
    count: i32,
    /// From one matrix to the next.
    stride: i64,
}

impl Matrices {
    fn new(shape: &[usize], strides: &[usize]) -> Option<Self> {
        let (batch, matrix) = shape.split_at(shape.len().checked_sub(2)?);
        let (batch_strides, matrix_strides) = strides.split_at(batch.len());
        let (rows, columns) = (matrix[0], matrix[1]);
        // The stride of a dimension of one element says nothing.
        let row_stride = if rows == 1 {
            columns
        } else {
            matrix_strides[0]
        };
        let column_stride = if columns == 1 { 1 } else { matrix_strides[1] };
        let (by_columns, leading) = match (row_stride, column_stride) {
            (leading, 1) if leading >= columns => (false, leading),
            (1, leading) if leading >= rows => (true, leading),
            _ => return None,
        };
        let mut dims = batch
            .iter()
            .zip(batch_strides)
            .rev()
            .filter(|(n, _)| **n != 1);
        let (mut count, mut stride) = (1, 0);
        if let Some((n, first)) = dims.next() {
            (count, stride) = (*n, *first);
        }
        for (n, next) in dims {
            if *next != count * stride {
                return None;
            }
            count *= n;
        }
        Some(Self {
            rows,
            columns,
            by_columns,
            leading: leading.try_into().ok()?,
            count: count.try_into().ok()?,
            stride: stride.try_into().ok()?,
        })
    }

    /// cuBLAS reads columns: rows are columns of the transposed.
    fn operation(&self) -> sys::cublasOperation_t {
        match self.by_columns {
            false => sys::cublasOperation_t::CUBLAS_OP_N,
            true => sys::cublasOperation_t::CUBLAS_OP_T,
        }
    }
}

/// What cuBLAS is asked for: `out = scale · a b + kept · out` with `[m, k]` and `[k, n]`.
struct Gemm {
    m: i32,
    n: i32,
    k: i32,
    a: Matrices,
    b: Matrices,
    dtype: sys::cudaDataType,
    out_dtype: sys::cudaDataType,
    compute: sys::cublasComputeType_t,
    scale: f32,
    kept: f32,
}

impl Gemm {
    /// `out = a b`.
    fn new(a: &CubeTensor, b: &CubeTensor, dtype: DType) -> Option<Self> {
        let known = a.dtype == b.dtype && [a.dtype, DType::F32].contains(&dtype);
        let batch = |shape: &Shape| shape[..shape.num_dims().saturating_sub(2)].to_vec();
        // cuBLAS multiplies bf16 from Volta on, the first cards on which planes can wait for their units.
        let planes = &a.client.properties().features.plane;
        let has_type = a.dtype != DType::BF16 || planes.contains(Plane::Sync);
        if !known || !has_type || batch(&a.shape()) != batch(&b.shape()) {
            return None;
        }
        let matrices = |tensor: &CubeTensor| {
            let (shape, strides) = (tensor.shape(), tensor.meta.strides());
            Matrices::new(&shape, strides)
        };
        let (a_matrices, b_matrices) = (matrices(a)?, matrices(b)?);
        let [m, n, k] = [a_matrices.rows, b_matrices.columns, a_matrices.columns];
        if [m, n, k].contains(&0) || a_matrices.count == 0 {
            return None;
        }
        let medium = a.dtype == DType::F32 && matmul_precision() == MatmulPrecision::Medium;
        Some(Self {
            m: m.try_into().ok()?,
            n: n.try_into().ok()?,
            k: k.try_into().ok()?,
            a: a_matrices,
            b: b_matrices,
            dtype: data_type(a.dtype)?,
            out_dtype: data_type(dtype)?,
            compute: match medium {
                true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
                false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            },
            scale: 1.0,
            kept: 0.0,
        })
    }

    /// Of columns, which cuBLAS reads and writes, the product is `outᵀ = bᵀ aᵀ`.
    fn run(
        &self,
        handle: sys::cublasHandle_t,
        a: *mut c_void,
        b: *mut c_void,
        out: *mut c_void,
    ) -> Result<(), CublasError> {
        // SAFETY: the caller's buffers have the sizes that the tensors had.
        unsafe {
            cublas::gemm_strided_batched_ex(
                handle,
                self.b.operation(),
                self.a.operation(),
                self.n,
                self.m,
                self.k,
                (&raw const self.scale).cast(),
                b,
                self.dtype,
                self.b.leading,
                self.b.stride,
                a,
                self.dtype,
                self.a.leading,
                self.a.stride,
                (&raw const self.kept).cast(),
                out,
                self.out_dtype,
                self.n,
                i64::from(self.m) * i64::from(self.n),
                self.a.count,
                self.compute,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
    }
}

fn data_type(dtype: DType) -> Option<sys::cudaDataType> {
    match dtype {
        DType::F32 => Some(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Some(sys::cudaDataType::CUDA_R_16BF),
        DType::F16 => Some(sys::cudaDataType::CUDA_R_16F),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrices(by_columns: bool, leading: i32, count: i32, stride: i64) -> Option<Matrices> {
        Some(Matrices {
            rows: 3,
            columns: 5,
            by_columns,
            leading,
            count,
            stride,
        })
    }

    #[test]
    fn strides_say_how_matrices_lie() {
        assert_eq!(Matrices::new(&[3, 5], &[5, 1]), matrices(false, 5, 1, 0));
        assert_eq!(Matrices::new(&[3, 5], &[1, 3]), matrices(true, 3, 1, 0));
        // Columns of a wider matrix.
        assert_eq!(Matrices::new(&[3, 5], &[8, 1]), matrices(false, 8, 1, 0));
        let batch = Matrices::new(&[2, 4, 3, 5], &[60, 15, 5, 1]);
        assert_eq!(batch, matrices(false, 5, 8, 15));
        // One stride does not serve heads that lie between the rows of others, unless there is one row.
        assert_eq!(Matrices::new(&[2, 4, 3, 5], &[60, 5, 20, 1]), None);
        let heads = Matrices::new(&[1, 4, 3, 5], &[60, 5, 20, 1]);
        assert_eq!(heads, matrices(false, 20, 4, 5));
        // Neither numbers of a row nor of a column are neighbours.
        assert_eq!(Matrices::new(&[3, 5], &[10, 2]), None);
        // More than cuBLAS counts.
        assert_eq!(Matrices::new(&[3, 5], &[1 << 31, 1]), None);
        assert_eq!(Matrices::new(&[1 << 31, 1, 1], &[1, 1, 1]), None);
        // The same row three times.
        assert_eq!(Matrices::new(&[3, 5], &[0, 1]), None);
        assert_eq!(Matrices::new(&[5], &[1]), None);
    }
}
