//! Verbs over any Burn module that holds [`LoRALinear`](crate::lora::LoRALinear)s: list, count and
//! freeze parameters, take and load state dicts, check them. No Llama, no file.

mod attach;
mod combine;
mod eva;
mod found;
mod init;
mod layout;
mod loftq;
mod params;
mod path;
mod quantize;
mod requantize;
mod state_dict;
mod validate;

pub use attach::{
    Adapter, adapter_config, adapter_layers, adapter_names, detach, disabled, merge_adapters,
    set_active_adapters, with_adapters, with_named_adapters, without_adapters,
};
pub(crate) use attach::{plan, with_found_adapters, with_new_adapters};
pub use combine::combine_adapters;
pub use eva::initialize_eva;
pub use init::initialize_adapters;
pub(crate) use layout::transposed;
pub use loftq::initialize_loftq;
pub use params::{
    ParamCount, ParamInfo, ParamSet, get_adapter_params, get_params, initialize_params,
    set_trainable_params, train_adapters,
};
pub use path::Role;
pub(crate) use path::{Path, follow_path};
pub use quantize::quantize_base;
pub(crate) use quantize::{packed_layouts, weight_key, with_lazy_packed};
pub use requantize::{RequantizationLoss, merge_requantized};
pub use state_dict::{
    LoadReport, StateDict, StateReader, adapter_state_dict, load_state_dict, load_tensors,
    state_dict, state_readers,
};
pub(crate) use state_dict::{compare_keys, lasting_tensor, require_dtype, to_host};
pub use validate::{AdaptedModules, StateDictKeys, validate_state_dict_for_lora};
