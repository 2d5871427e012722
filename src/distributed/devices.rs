use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::ProcessGroup;
use crate::{Error, Result};

/// Threads of one process that train together, each on a device of its own. CUDA devices add up
/// through NCCL, if its library `libnccl.so` is found when the program starts, others through main
/// memory.
///
/// NCCL is reached by Burn's `all_reduce`, without Burn's `DistributedContext`: that waits for all
/// devices at every backward pass, of which members with uneven shares do unequally many.
///
/// A member that is dropped, by an error or a panic of its thread say, ends the waiting of the
/// others with [`Error::PeerLost`].
#[derive(Debug)]
pub struct DeviceGroup {
    rank: usize,
    devices: Arc<[Device]>,
    exchange: Arc<Exchange>,
}

impl DeviceGroup {
    /// The members, one a device, in the order of their ranks. Give each to a thread, which makes or loads a model of its
    /// own: the graphs of threads that train one model, or clones of it, are one graph for Burn, whose locks two backward
    /// passes can hold against each other for ever (burn-autodiff 0.22.1).
    pub fn new(devices: Vec<Device>) -> Vec<Self> {
        let exchange = Arc::new(Exchange::new(devices.len()));
        let devices: Arc<[Device]> = devices.into();
        let member = |rank| Self {
            rank,
            devices: devices.clone(),
            exchange: exchange.clone(),
        };
        (0..devices.len()).map(member).collect()
    }

    /// The device of this member.
    pub fn device(&self) -> &Device {
        &self.devices[self.rank]
    }
}

impl ProcessGroup for DeviceGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.devices.len()
    }

    fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>> {
        #[cfg(feature = "cuda")]
        if have_nccl(&self.devices) {
            // Whoever waits in NCCL waits for ever: make sure that all members come, and that the
            // device of none has failed, which would not send.
            let mine = values.clone().try_into_data();
            let failed = self.all_gather(&[f64::from(u8::from(mine.is_err()))])?;
            mine.expect("the device has failed");
            return match failed.contains(&1.0) {
                true => Err(Error::PeerLost),
                false => Ok(nccl_all_reduce(values, &self.devices)),
            };
        }
        let device = values.device();
        let parts = self.exchange.all_gather(self.rank, values.into_data())?;
        let parts = parts
            .iter()
            .map(|part| Tensor::from_data(part.clone(), (&device, DType::F32)));
        let sum = parts.reduce(|sum: Tensor<1>, part| sum + part);
        Ok(sum.expect("a group has a member"))
    }

    fn all_gather(&self, values: &[f64]) -> Result<Vec<f64>> {
        let values = TensorData::new(values.to_vec(), [values.len()]);
        let parts = self.exchange.all_gather(self.rank, values)?;
        let values = |part: &TensorData| part.try_to_vec::<f64>().expect("members gather f64");
        Ok(parts.iter().flat_map(values).collect())
    }
}

impl Drop for DeviceGroup {
    fn drop(&mut self) {
        self.exchange.leave();
    }
}

/// Whether NCCL is installed and serves these devices: different CUDA devices. With one of them twice it
/// would wait for ever.
#[cfg(feature = "cuda")]
fn have_nccl(devices: &[Device]) -> bool {
    use burn::backend::{CubeDevice, DispatchDevice};
    let are_different = (1..devices.len()).all(|i| !devices[..i].contains(&devices[i]));
    let serves = |device: &Device| {
        let device = device.clone().without_autodiff();
        match device.as_dispatch() {
            DispatchDevice::Cube(cuda @ CubeDevice::Cuda(_)) => {
                cuda.client().has_device_transport()
            }
            _ => false,
        }
    };
    are_different && devices.iter().all(serves)
}

#[cfg(feature = "cuda")]
fn nccl_all_reduce(values: Tensor<1>, devices: &[Device]) -> Tensor<1> {
    use burn::tensor::distributed::{ReduceOperation, all_reduce};
    let devices = devices
        .iter()
        .map(|device| device.clone().without_autodiff());
    all_reduce(values, ReduceOperation::Sum, devices.collect()).resolve()
}

/// A place where threads meet and see each other's data.
#[derive(Debug)]
struct Exchange {
    round: Mutex<Round>,
    changed: Condvar,
}

#[derive(Debug)]
struct Round {
    parts: Vec<Option<TensorData>>,
    /// All parts, from when the last has come until all members have seen them.
    all: Option<Arc<Vec<TensorData>>>,
    seen: usize,
    /// Whether a member will not come any more.
    is_left: bool,
}

impl Exchange {
    fn new(size: usize) -> Self {
        Self {
            round: Mutex::new(Round {
                parts: vec![None; size],
                all: None,
                seen: 0,
                is_left: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Waits for every member's part.
    fn all_gather(&self, rank: usize, part: TensorData) -> Result<Arc<Vec<TensorData>>> {
        // The round before may not have been seen by all.
        let mut round = self.wait(self.lock(), |round| round.all.is_none() || round.is_left);
        if round.is_left {
            return Err(Error::PeerLost);
        }
        round.parts[rank] = Some(part);
        if round.parts.iter().all(Option::is_some) {
            let parts = round.parts.iter_mut().filter_map(Option::take).collect();
            round.all = Some(Arc::new(parts));
            self.changed.notify_all();
        }
        let mut round = self.wait(round, |round| round.all.is_some() || round.is_left);
        let all = round.all.clone().ok_or(Error::PeerLost)?;
        round.seen += 1;
        if round.seen == round.parts.len() {
            round.seen = 0;
            round.all = None;
            self.changed.notify_all();
        }
        Ok(all)
    }

    fn leave(&self) {
        self.lock().is_left = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        // Nothing panics while it holds the lock.
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        round: MutexGuard<'a, Round>,
        is_over: impl Fn(&Round) -> bool,
    ) -> MutexGuard<'a, Round> {
        let wait = self.changed.wait_while(round, |round| !is_over(round));
        wait.unwrap_or_else(PoisonError::into_inner)
    }
}
