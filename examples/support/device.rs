//! The device that a name means.

use burn::tensor::Device;
use burn_peft::{Error, Result};

/// `auto` (what Burn finds best, or what `BURN_DEVICE` names), `flex`, `cuda` or `cuda:N`.
pub fn from_name(name: &str) -> Result<Device> {
    match name {
        "auto" => Ok(Device::default()),
        "flex" => Ok(Device::flex()),
        _ => cuda(name),
    }
}

#[cfg(feature = "cuda")]
fn cuda(name: &str) -> Result<Device> {
    let rest = name.strip_prefix("cuda").ok_or_else(|| unknown(name))?;
    let index = match rest.strip_prefix(':') {
        None if rest.is_empty() => 0,
        None => return Err(unknown(name)),
        Some(number) => number.parse::<usize>().map_err(|_| unknown(name))?,
    };
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str) -> Result<Device> {
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
