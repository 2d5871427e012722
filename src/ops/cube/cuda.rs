//! What CubeCL does not tell of a CUDA device, asked of the driver.

use std::any::TypeId;

use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::CudaRuntime;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::ServerStorage;
use cubecl_server::runtime::Runtime;
use cudarc::driver::result::mem_get_info;

pub type Server = <CudaRuntime as Runtime>::Server;

pub fn is_cuda(tensor: &CubeTensor) -> bool {
    tensor.client.service_id().service == TypeId::of::<Server>()
}

/// What `f` gives in the context of a CUDA tensor's device, on the device's own thread.
pub fn in_context<T: Send + 'static>(
    tensor: &CubeTensor,
    f: impl FnOnce() -> Option<T> + Send + 'static,
) -> Option<T> {
    let server = DeviceHandle::<Server>::new(tensor.client.service_id().device);
    let binding = tensor.handle.clone().binding();
    let result = server.submit_blocking(move |server| {
        // This makes the context current.
        let stream = binding.stream;
        let _tensor = server.get_resource(binding, stream).ok()?;
        f()
    });
    result.ok().flatten()
}

/// The memory of a CUDA tensor's device that nobody has taken, in bytes.
pub fn free_memory(tensor: &CubeTensor) -> Option<u64> {
    let (free, _total) = in_context(tensor, || mem_get_info().ok())?;
    Some(free as u64)
}
