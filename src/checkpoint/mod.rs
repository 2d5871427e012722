//! Files and models: Hugging Face folders, Meta's and GGUF files, PEFT adapters, plain safetensors. The only place that
//! knows the names that other programs give to tensors.
//!
//! Headers are checked before a model is touched; weights are read tensor by tensor from a memory
//! map and cast on the way, so a model is never held twice. Files are written beside their final
//! name and then moved.

mod adapter_file;
mod any_adapter;
mod any_base;
mod base;
mod bitsandbytes;
mod composed;
mod experts;
mod export;
mod gguf;
mod hf;
mod hf_config;
mod identity;
mod keys;
mod load;
mod loftq;
mod merge;
mod merged;
mod meta;
mod mlx;
mod peft;
mod rotary;
mod stored;
mod tensors;
mod torchtune;
mod weights;

pub(crate) use hf_config::hf_config_key;

pub use adapter_file::{load_adapter, load_adapter_with, save_adapter};
pub use any_adapter::{attach_any_adapter, load_any_adapter, read_adapter_config};
pub use any_base::{
    check_base, load_any_base, load_any_base_as, read_base_config, read_base_packing,
};
pub use export::{AdapterFormat, export_adapter};
pub use gguf::{
    GgufFormat, load_gguf, load_gguf_as, read_gguf_config, save_gguf, save_gguf_adapter,
    save_merged_gguf,
};
pub(crate) use hf::is_hf_folder;
pub use hf::{copy_generation_config, load_hf, load_hf_as, read_hf_config, save_hf};
pub use identity::{base_fingerprint, base_model_name};
pub use load::{LoadOptions, ModelAdapter, load_model, load_tokenizer};
pub use loftq::initialize_loftq_from;
pub use merge::{MergeOptions, merge_files};
pub use merged::{MergedCheckpoint, check_merge, save_merged_hf};
pub use meta::{load_meta, load_meta_as, read_meta_config};
pub use mlx::{read_mlx, save_mlx};
pub(crate) use peft::translated;
pub use peft::{
    Serving, attach_peft, attach_peft_as, load_peft, peft_names, peft_tensors, read_peft_config,
    save_peft, save_peft_adapter, save_peft_for, save_peft_unconverted, save_peft_with_base,
};
pub use tensors::{
    SafetensorsFile, WritableTensor, load_state_dict_file, save_state_dict, write_tensors,
};
pub use torchtune::{read_torchtune, save_torchtune};
