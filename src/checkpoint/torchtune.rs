//! torchtune's adapters: its key names, which are this crate's, and rows of q and k in another order.

use std::path::Path;

use super::rotary::{half_split_row, interleaved_row, permuted, rotated_rows};
use super::tensors::{load_state_dict_file, save_state_dict};
use crate::adapter::{Adapter, StateDict};
use crate::llama::LlamaConfig;
use crate::lora::LoRAConfig;
use crate::{Error, Result};

/// Reads an adapter in torchtune's keys from a safetensors file. The file does not say how the adapter was made:
/// `lora` does.
///
/// torchtune rotates neighbouring rows of a head, Hugging Face and this crate rows half a head apart, so the rows of
/// `lora_b` and `magnitude` of q and k are brought into the other order.
///
/// # Errors
/// [`Error::Adapter`] if the model has joint projections, which torchtune does not have, or a tensor of q or k does not
/// have the model's rows; [`Error::Io`], [`Error::Format`], [`Error::DType`] if the file cannot be read.
pub fn read_torchtune(
    path: impl AsRef<Path>,
    lora: &LoRAConfig,
    model: &LlamaConfig,
) -> Result<Adapter> {
    let path = path.as_ref();
    let tensors = load_state_dict_file(path)?;
    let tensors = with_rows(tensors, model, path, half_split_row)?;
    Ok(Adapter::new(lora.clone(), tensors))
}

/// Writes an adapter in torchtune's keys to a safetensors file, the reverse of [`read_torchtune`].
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Adapter`] as for [`read_torchtune`].
pub fn save_torchtune(
    adapter: &Adapter,
    model: &LlamaConfig,
    path: impl AsRef<Path>,
) -> Result<()> {
    let path = path.as_ref();
    let tensors = with_rows(adapter.tensors.clone(), model, path, interleaved_row)?;
    save_state_dict(&tensors, path)
}

/// Puts the rows of q's and k's outputs into another order: row i is what was row `source(i)` of its head.
fn with_rows(
    tensors: StateDict,
    model: &LlamaConfig,
    path: &Path,
    source: fn(usize, usize) -> usize,
) -> Result<StateDict> {
    if model.block.joint_projections {
        return Err(Error::Adapter {
            path: path.to_owned(),
            message: "torchtune has no `qkv_proj` and `gate_up_proj`, as this model has, but their parts; take a \
                      folder of PEFT's"
                .into(),
        });
    }
    let permuted = tensors.into_iter().map(|(key, value)| {
        let Some(rows) = rotated_rows(&key, model) else {
            return Ok((key, value));
        };
        if value.shape()[0] != rows {
            let message = format!(
                "`{key}` has {} rows, the model's heads have {rows}",
                value.shape()[0]
            );
            return Err(Error::Adapter {
                path: path.to_owned(),
                message,
            });
        }
        let value = permuted(value, model.head_dim, source);
        Ok((key, value))
    });
    permuted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::Block;
    use burn::tensor::TensorData;

    #[test]
    fn only_the_outputs_of_q_and_k_are_turned() {
        let model = LlamaConfig {
            head_dim: 4,
            num_heads: 2,
            num_kv_heads: 1,
            ..LlamaConfig::llama2_7b()
        };
        let rows = |key: &str| rotated_rows(key, &model);
        assert_eq!(rows("layers.0.attn.q_proj.lora_b.weight"), Some(8));
        assert_eq!(rows("layers.0.attn.k_proj.magnitude"), Some(4));
        assert_eq!(rows("layers.0.attn.q_proj.lora_a.weight"), None);
        assert_eq!(rows("layers.0.attn.v_proj.lora_b.weight"), None);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.safetensors");
        let key = "layers.0.attn.k_proj.lora_b.weight".to_owned();
        let numbers: Vec<f32> = (0..8).map(|n| n as f32).collect();
        let value = TensorData::new(numbers, [4, 2]);
        let adapter = Adapter::new(LoRAConfig::new(["k_proj"]), [(key.clone(), value)].into());
        save_torchtune(&adapter, &model, &path).unwrap();
        let theirs: Vec<f32> = load_state_dict_file(&path).unwrap()[&key].iter().collect();
        assert_eq!(theirs, [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        let again = read_torchtune(&path, &adapter.config, &model).unwrap();
        assert_eq!(again, adapter);

        let other = LlamaConfig {
            head_dim: 8,
            ..model
        };
        let error = read_torchtune(&path, &adapter.config, &other).unwrap_err();
        assert!(error.to_string().contains("has 4 rows"), "{error}");
        let block = Block::default().with_joint_projections(true);
        let joint = other.with_block(block);
        let error = save_torchtune(&adapter, &joint, &path).unwrap_err();
        assert!(error.to_string().contains("no `qkv_proj`"), "{error}");
    }
}
