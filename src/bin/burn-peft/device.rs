//! The device that a name means.

use std::panic;

use burn::tensor::Device;
#[cfg(feature = "cuda")]
use burn::tensor::DeviceType;
use burn_peft::{Error, Result};

/// `auto` (what `BURN_DEVICE` names, or else a GPU if there is one, or else the CPU), `flex`, `cuda` or
/// `cuda:N`. `local_rank` is the number of this process on its machine: `auto` and `cuda` give each its
/// own GPU.
pub fn from_name(name: &str, local_rank: usize) -> Result<Device> {
    match name {
        "auto" => auto(local_rank),
        "flex" => Ok(Device::flex()),
        _ => cuda(name, local_rank),
    }
}

#[cfg(feature = "cuda")]
fn auto(local_rank: usize) -> Result<Device> {
    let is_chosen = std::env::var_os("BURN_DEVICE").is_some();
    // Burn's default is the GPU that the program was built for, whether there is one or not.
    if !is_chosen && Device::enumerate(DeviceType::Cuda).is_empty() {
        return Ok(Device::flex());
    }
    let device = default_device()?;
    Ok(match device == Device::cuda(0) {
        true => Device::cuda(local_rank),
        false => device,
    })
}

#[cfg(not(feature = "cuda"))]
fn auto(_local_rank: usize) -> Result<Device> {
    default_device()
}

/// Burn panics for a `BURN_DEVICE` that it does not know.
fn default_device() -> Result<Device> {
    let Some(name) = std::env::var_os("BURN_DEVICE") else {
        return Ok(Device::default());
    };
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let device = panic::catch_unwind(Device::default);
    panic::set_hook(hook);
    device.map_err(|_| Error::InvalidArgument {
        name: "BURN_DEVICE",
        message: format!(
            "this program was not built for `{}`, or finds no such device; unset it, or take flex",
            name.display()
        ),
    })
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, local_rank: usize) -> Result<Device> {
    let rest = name.strip_prefix("cuda").ok_or_else(|| unknown(name))?;
    let index = match rest.strip_prefix(':') {
        None if rest.is_empty() => local_rank,
        None => return Err(unknown(name)),
        Some(number) => number.parse::<usize>().map_err(|_| unknown(name))?,
    };
    // Another one panics when it is first used.
    let found = Device::enumerate(DeviceType::Cuda).len();
    match index < found {
        true => Ok(Device::cuda(index)),
        false => Err(absent(name, index, found)),
    }
}

#[cfg(feature = "cuda")]
fn absent(name: &str, index: usize, found: usize) -> Error {
    let message = match found {
        0 => {
            "no GPU of NVIDIA's, or no driver for it, is found; take device=flex for the CPU".into()
        }
        _ => format!("there is no GPU {index}: {found} are found, which are counted from 0"),
    };
    of_device(name, message)
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _local_rank: usize) -> Result<Device> {
    Err(unknown(name))
}

fn unknown(name: &str) -> Error {
    let is_cuda = name.starts_with("cuda");
    let message = match (is_cuda, cfg!(feature = "cuda"), name.contains(',')) {
        (true, false, _) => "this program was built without CUDA; build it with --features cuda",
        (true, true, true) => "each process of mpirun takes one GPU: device=cuda",
        _ => {
            "it is none of auto (with BURN_DEVICE for others, such as ndarray), flex, cuda and cuda:N"
        }
    };
    of_device(name, message.into())
}

fn of_device(name: &str, message: String) -> Error {
    Error::Config {
        origin: format!("device \"{name}\""),
        key: "device".into(),
        line: None,
        message,
        nearest: Vec::new(),
    }
}
