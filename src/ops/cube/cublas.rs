//! Products by NVIDIA's cuBLAS, on CUDA devices where it is installed.
//!
//! CubeCL keeps its streams to itself, so products go to a stream of their own. Events of the whole
//! context put them in their place among CubeCL's kernels: one makes the product wait for all that was
//! submitted before it, another makes all that is submitted later wait for the product.

use std::any::TypeId;
use std::ffi::c_void;
use std::sync::Mutex;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::CudaRuntime;
use cubecl::device::DeviceId;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{BufferBinding, ServerStorage};
use cubecl_runtime::runtime::Runtime;
use cudarc::cublas::{result as cublas, sys};
use cudarc::driver::result::{ctx, event, stream};
use cudarc::driver::sys as driver;

use super::empty;
use crate::ops::{MatmulPrecision, matmul_precision};

type Server = <CudaRuntime as Runtime>::Server;

/// The first version of the driver, 12.5, with events of a context.
const CONTEXT_EVENTS: i32 = 12050;

/// `a b` of the last two dimensions, with sums in f32, written as `dtype`; none if cuBLAS is not there, or
/// does not take such tensors.
pub fn product(a: &CubeTensor, b: &CubeTensor, dtype: DType) -> Option<CubeTensor> {
    let gemm = Gemm::new(a, b, dtype)?;
    let device = device(a)?;
    let mut shape = a.shape();
    shape[a.shape().num_dims() - 1] = gemm.n as usize;
    let out = empty(a, shape, dtype);
    let operands = [a, b, &out].map(|tensor| tensor.handle.clone().binding());
    device.server.submit(move |server| {
        let done = run(server, operands, &device.cublas, &gemm);
        if let Err(message) = done {
            *FAILURE.lock().expect("no panic while it is held") = Some(message);
        }
    });
    Some(out)
}

/// A product that failed after its call had returned: the next call tells.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);

/// What is known of each device: none if products are not cuBLAS's there.
static DEVICES: Mutex<Vec<(DeviceId, Option<Device>)>> = Mutex::new(Vec::new());

#[derive(Clone)]
struct Device {
    server: DeviceHandle<Server>,
    cublas: Cublas,
}

/// The device of `tensor`, if products are cuBLAS's there.
fn device(tensor: &CubeTensor) -> Option<Device> {
    if let Some(message) = &*FAILURE.lock().expect("no panic while it is held") {
        panic!("a product by cuBLAS failed: {message}");
    }
    let service = tensor.client.service_id();
    if service.service != TypeId::of::<Server>() {
        return None;
    }
    let mut devices = DEVICES.lock().expect("no panic while it is held");
    if let Some((_, device)) = devices.iter().find(|(id, _)| *id == service.device) {
        return device.clone();
    }
    let server = DeviceHandle::<Server>::new(service.device);
    let binding = tensor.handle.clone().binding();
    let opened = server.submit_blocking(move |server| {
        // This makes the device's context current.
        let stream = binding.stream;
        let _tensor = server.get_resource(binding, stream).ok()?;
        Cublas::open()
    });
    let cublas = opened.ok().flatten();
    let device = cublas.map(|cublas| Device { server, cublas });
    devices.push((service.device, device.clone()));
    device
}

/// cuBLAS on one device, for the life of the process. Only the device's own thread calls it.
#[derive(Clone, Copy)]
struct Cublas {
    handle: sys::cublasHandle_t,
    context: driver::CUcontext,
    stream: driver::CUstream,
    event: driver::CUevent,
}

// SAFETY: what these point to belongs to the driver, and to no thread.
unsafe impl Send for Cublas {}

impl Cublas {
    /// Of the current context; none without the library or with an older driver.
    fn open() -> Option<Self> {
        // SAFETY: loads the library.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        let mut version = 0;
        // SAFETY: writes one number.
        unsafe { driver::cuDriverGetVersion(&mut version) }
            .result()
            .ok()?;
        if version < CONTEXT_EVENTS {
            return None;
        }
        let context = ctx::get_current().ok()??;
        let stream = stream::create(stream::StreamKind::NonBlocking).ok()?;
        let event = event::create(driver::CUevent_flags::CU_EVENT_DISABLE_TIMING).ok()?;
        let handle = cublas::create_handle().ok()?;
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
        })
    }

    /// Makes the stream wait for all that was submitted to the device.
    fn enter(&self) -> Result<(), cudarc::driver::DriverError> {
        // SAFETY: all of one context, and alive.
        unsafe {
            driver::cuCtxRecordEvent(self.context, self.event).result()?;
            let flags = driver::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            stream::wait_event(self.stream, self.event, flags)
        }
    }

    /// Makes all that will be submitted to the device wait for the stream.
    fn leave(&self) -> Result<(), cudarc::driver::DriverError> {
        // SAFETY: all of one context, and alive.
        unsafe {
            event::record(self.event, self.stream)?;
            driver::cuCtxWaitEvent(self.context, self.event).result()
        }
    }
}

/// Submits a product, on the device's own thread.
fn run(
    server: &mut Server,
    operands: [BufferBinding; 3],
    cublas: &Cublas,
    gemm: &Gemm,
) -> Result<(), String> {
    // The output was made on the stream of now.
    let stream = operands[2].stream;
    // While these live, nothing else gets their memory.
    let mut resources = Vec::new();
    for binding in operands {
        let resource = server.get_resource(binding, stream);
        resources.push(resource.map_err(|err| format!("{err:?}"))?);
    }
    let at = |i: usize| resources[i].resource().ptr as *mut c_void;
    cublas.enter().map_err(|err| err.to_string())?;
    gemm.run(cublas.handle, at(0), at(1), at(2))
        .map_err(|err| err.to_string())?;
    cublas.leave().map_err(|err| err.to_string())
}

/// A batch of matrices `[rows, columns]` that lie row after row, or column after column.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Matrices {
    rows: usize,
    columns: usize,
    by_columns: bool,
    /// From one row (or column) to the next.
    leading: usize,
    count: usize,
    /// From one matrix to the next.
    stride: usize,
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
            leading,
            count,
            stride,
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

/// What cuBLAS is asked for: `out = a b` with `[m, k]` and `[k, n]`.
struct Gemm {
    m: i32,
    n: i32,
    k: i32,
    a: Matrices,
    b: Matrices,
    dtype: sys::cudaDataType,
    out_dtype: sys::cudaDataType,
    compute: sys::cublasComputeType_t,
}

impl Gemm {
    fn new(a: &CubeTensor, b: &CubeTensor, dtype: DType) -> Option<Self> {
        let known = a.dtype == b.dtype && [a.dtype, DType::F32].contains(&dtype);
        let batch = |shape: &Shape| shape[..shape.num_dims().saturating_sub(2)].to_vec();
        if !known || batch(&a.shape()) != batch(&b.shape()) {
            return None;
        }
        let matrices = |tensor: &CubeTensor| {
            let (shape, strides) = (tensor.shape(), tensor.meta.strides());
            Matrices::new(&shape, strides)
        };
        let (a_matrices, b_matrices) = (matrices(a)?, matrices(b)?);
        let [m, n, k] = [a_matrices.rows, b_matrices.columns, a_matrices.columns];
        if [m, n, k, a_matrices.count].contains(&0) {
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
        })
    }

    /// Of columns, which cuBLAS reads and writes, the product is `outᵀ = bᵀ aᵀ`.
    fn run(
        &self,
        handle: sys::cublasHandle_t,
        a: *mut c_void,
        b: *mut c_void,
        out: *mut c_void,
    ) -> Result<(), cublas::CublasError> {
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the caller's buffers have the sizes that the tensors had.
        unsafe {
            cublas::gemm_strided_batched_ex(
                handle,
                self.b.operation(),
                self.a.operation(),
                self.n,
                self.m,
                self.k,
                (&raw const one).cast(),
                b,
                self.dtype,
                self.b.leading as i32,
                self.b.stride as i64,
                a,
                self.dtype,
                self.a.leading as i32,
                self.a.stride as i64,
                (&raw const zero).cast(),
                out,
                self.out_dtype,
                self.n,
                i64::from(self.m) * i64::from(self.n),
                self.a.count as i32,
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

    fn matrices(by_columns: bool, leading: usize, count: usize, stride: usize) -> Option<Matrices> {
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
        // The same row three times.
        assert_eq!(Matrices::new(&[3, 5], &[0, 1]), None);
        assert_eq!(Matrices::new(&[5], &[1]), None);
    }
}
