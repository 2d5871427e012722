//! The device that a name means.

use burn::tensor::Device;
#[cfg(feature = "cuda")]
use burn::tensor::DeviceType;
use burn_peft::{Error, Result};

/// `auto` (what `BURN_DEVICE` names, or else a GPU if there is one, or else the CPU), `flex`, `cuda` or `cuda:N`. `local_rank`
/// is the number of this process on its machine: `auto` and `cuda` give each its own GPU.
pub fn from_name(name: &str, local_rank: usize) -> Result<Device> {
    match name {
        "auto" => Ok(auto(local_rank)),
        "flex" => Ok(Device::flex()),
        _ => cuda(name, local_rank),
    }
}

#[cfg(feature = "cuda")]
fn auto(local_rank: usize) -> Device {
    let is_chosen = std::env::var_os("BURN_DEVICE").is_some();
    // Burn's default is the GPU that the program was built for, whether there is one or not.
    if !is_chosen && Device::enumerate(DeviceType::Cuda).is_empty() {
        return Device::flex();
    }
    let device = Device::default();
    match device == Device::cuda(0) {
        true => Device::cuda(local_rank),
        false => device,
    }
}

#[cfg(not(feature = "cuda"))]
fn auto(_local_rank: usize) -> Device {
    Device::default()
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, local_rank: usize) -> Result<Device> {
    let rest = name.strip_prefix("cuda").ok_or_else(|| unknown(name))?;
    let index = match rest.strip_prefix(':') {
        None if rest.is_empty() => local_rank,
        None => return Err(unknown(name)),
        Some(number) => number.parse::<usize>().map_err(|_| unknown(name))?,
    };
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _local_rank: usize) -> Result<Device> {
    Err(unknown(name))
}

fn unknown(name: &str) -> Error {
    let cuda = match cfg!(feature = "cuda") {
        true => "cuda, cuda:N",
        false => "and cuda or cuda:N when built with `--features cuda`",
    };
    Error::Config {
        origin: "device".into(),
        key: "device".into(),
        line: None,
        message: format!("`{name}` is none of auto (with BURN_DEVICE for others), flex, {cuda}"),
        nearest: Vec::new(),
    }
}
