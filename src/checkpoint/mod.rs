//! Files and models: Hugging Face folders, PEFT adapters, plain safetensors. The only place that
//! knows the names that other programs give to tensors.
//!
//! Headers are checked before a model is touched; weights are read tensor by tensor from a memory
//! map and cast on the way, so a model is never held twice. Files are written beside their final
//! name and then moved.

mod hf;
mod hf_config;
mod keys;
mod peft;
mod tensors;
mod weights;

pub(crate) use hf_config::hf_config_key;

pub use hf::{copy_generation_config, load_hf, load_hf_as, read_hf_config, save_hf};
pub use peft::{load_peft, read_peft_config, save_peft, save_peft_with_base};
pub use tensors::{
    SafetensorsFile, WritableTensor, load_state_dict_file, save_state_dict, write_tensors,
};
